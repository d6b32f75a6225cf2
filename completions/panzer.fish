complete -c panzer -s w -l workers -d 'Number of copies to run; auto: one for each CPU that panzer may use [auto]' -r
complete -c panzer -s l -l listen -d 'Listen on this address and pass the socket to the workers as LISTEN_FDS: 8080, 127.0.0.1:8080, [::1]:8080, localhost:8080 (one socket for each address of the host), unix:/run/app.sock, unix:@name, udp:53. A port alone accepts IPv4 and IPv6; IPv4 clients appear as ::ffff:1.2.3.4, so give one address behind a proxy. Port 0 is any free port; it stays the same until panzer ends. OPT: backlog=N, nonblock, per-worker; for a unix path also mode=0660, owner=USER, group=GROUP. If panzer itself was started with a socket of that address or NAME, as by systemd, it uses that socket. May be given several times' -r
complete -c panzer -l also-speak -d 'Also name the listeners as these tools do: server-starter (SERVER_STARTER_PORT; a port alone is IPv4 only), einhorn (EINHORN_FD_0 ...; an ack counts as READY=1), nginx (NGINX), unicorn (UNICORN_FD), fpm (FPM_SOCKETS)' -r -f -a "server-starter\t'`SERVER_STARTER_PORT`, `SERVER_STARTER_GENERATION`'
einhorn\t'`EINHORN_FD_COUNT` and so on, with an acknowledgement at `EINHORN_SOCK_PATH`'
nginx\t'`NGINX`'
unicorn\t'`UNICORN_FD`'
fpm\t'`FPM_SOCKETS`'"
complete -c panzer -l listen-pid -d 'none: do not set LISTEN_PID, for a worker that starts the server as its child, such as sh -c without exec [worker]' -r -f -a "worker\t'The worker\'s pid'
none\t'Not set, for a worker that is only a wrapper around the process that takes the listeners'"
complete -c panzer -l listen-as -d 'stdin: pass the only listener as descriptor 0 and do not set LISTEN_FDS, as inetd\'s wait and Java\'s inheritedChannel expect [fds]' -r -f -a "fds\t'From descriptor 3 on, as `LISTEN_FDS` describes'
stdin\t'The only listener as descriptor 0, like `wait` in inetd'"
complete -c panzer -l share-ports -d 'Share the TCP ports that the program binds itself among all workers; the program does not notice. auto: share all ports if there is no --listen; PORTS, as in 8000,8443: share only these, and give any other port (a debugger, metrics) to the first worker that binds it. A port that is bound as a lock is never shared. Without CAP_SYS_ADMIN, setuid programs gain no rights in the workers [auto]' -r -f -a "auto\t''
on\t''
off\t''"
complete -c panzer -l refork -d 'With --preload: have a worker that is warm become the mold, and replace the others one by one by workers that it forks, so that all share what the program has loaded, computed and compiled since. AFTER is a number of requests (which workers report: see --max-requests) or a time with its unit, as in 1000, 10m, or 50,1000,10m for the first time, the second, and all further ones. A replacement is ready before its worker stops. The program\'s client must know how. 0 turns it off [0]' -r
complete -c panzer -l ready -d 'When a worker counts as ready. accept: it is seen accepting on a listener; notify: it sent READY=1; alive: it runs; exec:CMD: the shell command CMD exits with 0; if the worker has a listener, panzer first waits until it accepts. CMD gets PANZER_WORKER_PID, PANZER_WORKER_ID and PANZER_GENERATION. auto: accept if the worker has a listener, given or shared, and accepting can be seen; otherwise notify if the serving generation sent READY=1; otherwise alive. A request from CMD to the shared address proves nothing about this worker: other workers answer it too, old ones included. Give each worker its own address for that, with {worker} and {generation} in ARGS, or look at $PANZER_WORKER_PID [auto]' -r -f -a "auto\t'as accept if it has a listener and that can be seen; else as notify if the serving generation sent READY=1, else as alive'
accept\t'once it is seen accepting on one of its listeners'
notify\t'once it has sent READY=1'
alive\t'once it runs'
exec:CMD\t'once it accepts, if it has a listener, and this shell command exits with 0'"
complete -c panzer -l ready-timeout -d 'Fail a generation that is not ready within this time. If there is no older generation to keep, panzer restarts the worker that is not ready in time; each further try gets twice the time, up to 16 times [60s]' -r
complete -c panzer -l bake -d 'Time that a new generation must run beside the old one, with all its workers ready, before the old one is retired [1s]' -r
complete -c panzer -l surge -d 'Number of workers beyond --workers that a reload may run at once, as in 1, 25% or all. Less than all: the new generation replaces the old one share by share. Each share must be ready before panzer stops as many old workers. Only the first share bakes [all]' -r
complete -c panzer -l timeout -d 'Time that a worker has to stop gracefully: the first wait of --stop [60s]' -r
complete -c panzer -l stop -d 'Signals that stop a worker, and the wait after each. A wait before the first signal, as in 5s/TERM/60s/KILL, puts a graceful stop of panzer off: workers go on serving until balancers know. Reloads do not wait [TERM/60s/INT/5s/KILL]' -r
complete -c panzer -l retire -d 'The same for workers that a reload or a scale-down stops [as --stop]' -r
complete -c panzer -l delay -d 'First delay before a respawn. It doubles with each further failure, and is at least 10ms from the second failure on. There is no delay after a healthy life, nor after the first death of a worker that was ready [100ms]' -r
complete -c panzer -l delay-max -d 'Longest delay before a respawn, at least 10ms [30s]' -r
complete -c panzer -l healthy-after -d 'A worker that ran this long counts as healthy; its restart delay is reset. At least 100ms [10s]' -r
complete -c panzer -l watchdog -d 'Abort and replace a ready worker that sends no WATCHDOG=1 to NOTIFY_SOCKET within this time. It gets the time as WATCHDOG_USEC, and shall send twice as often. 0 turns it off [0]' -r
complete -c panzer -l respawn-limit -d 'Give up, with exit code 1, after more than N respawns within D, as in 10/60s [never]' -r
complete -c panzer -l final-exit-codes -d 'Do not respawn a worker that exits with one of these codes, as in 0,64-78. When all workers have ended so, panzer exits with CODE, as in 5,6=0, or with the highest of their codes. In a new generation that does not serve yet, such an exit fails the release [none]' -r
complete -c panzer -l start-delay -d 'Pause between two starts of workers, up to 20 % longer or shorter. --ready-timeout counts from the last start [0s]' -r
complete -c panzer -l max-lifetime -d 'Replace a worker that has run for this long, or for up to 20 % less, so that workers are not replaced together. Its replacement is ready first. One worker is replaced at a time, and none during a reload. 0 turns it off [0]' -r
complete -c panzer -l max-memory -d 'Replace in the same way a worker that uses more memory than this (PSS, with all that it has started), as in 512M. It is measured every second near the limit, and every 30 seconds far below. 0 turns it off [0]' -r
complete -c panzer -l max-requests -d 'Replace in the same way a worker that has served this number of requests, or up to 20 % fewer. Workers report their number so far, as X_PANZER_REQUESTS=N to NOTIFY_SOCKET. 0 turns it off [0]' -r
complete -c panzer -l max-draining -d 'Number of old generations that may drain at once. If there are more, the one that has drained longest goes on with --stop, after its first wait [4]' -r
complete -c panzer -l chdir -d 'Working directory of the workers. Each generation enters it anew' -r -F
complete -c panzer -l env -d 'Set this variable in the workers\' environment. The placeholders of ARGS work here too. May be given several times' -r
complete -c panzer -l env-file -d 'Set the variables of this file too. Each generation reads it anew: NAME=VALUE lines; quotes and # comments are allowed. If a \'-\' stands before its name, the file may be missing. --env wins over it. May be given several times' -r
complete -c panzer -l user -d 'Run the workers as this user, and as the group after the colon, without any capability. Each generation looks them up anew. HOME, USER, LOGNAME and SHELL are set to that user\'s. Workers may open /dev/stdout and /dev/stderr if these are pipes or a terminal that root owns. Needs root' -r
complete -c panzer -l group -d 'Group of the workers, if not the user\'s own' -r
complete -c panzer -l umask -d 'File mode creation mask (umask) of the workers, as in 027' -r
complete -c panzer -l nice -d 'Nice value of the workers, from -20 (highest priority) to 19 (lowest)' -r
complete -c panzer -l rlimit -d 'Limit a resource of each worker, as in NOFILE=65536 or CORE=0:unlimited, by the names of setrlimit(2) without RLIMIT_. One number is the soft and the hard limit. To raise a hard limit takes root. May be given several times, once for each resource' -r
complete -c panzer -l oom-score-adj -d 'How gladly the kernel ends a worker if memory runs out, from -1000 (never) to 1000 (first). With this option panzer protects its own processes if it may, which takes root' -r
complete -c panzer -l cpu-affinity -d 'CPUs that the workers run on. auto: each worker gets one of the CPUs that panzer may use, in turn; LIST, as in 0-3,6: each worker may use all of these' -r
complete -c panzer -l cgroup -d 'Put the workers of each generation into a cgroup of their own, with limits for all of them together: memory=SIZE, pids=N (processes and threads), or on for no limit. What a generation leaves behind is killed with it. Takes cgroups of version 2, and one that panzer may divide, as by Delegate=yes in a systemd unit [off]' -r
complete -c panzer -l config -d 'Read options from this YAML file. Its keys are option names, program and args; an option that may be given several times takes a list, and one of the form NAME=VALUE also a map. Flags win over the environment, the environment over the file [config/panzer.yml, if it exists]' -r -F
complete -c panzer -l signals -d 'Which convention panzer\'s signals follow: panzer, serverengine, preforker, kamisama, unicorn, server-starter or einhorn; panzer(1) has the table [panzer]' -r -f -a "panzer\t''
serverengine\t''
preforker\t''
kamisama\t''
unicorn\t''
server-starter\t''
einhorn\t''"
complete -c panzer -l on -d 'Change what one signal does, as in TTIN=scale-up: reload, detach, restart-workers, reopen, stop, stop-then-now, stop-now, scale-up, scale-down, scale-down-oldest, quiet, restart, status, dump, pass (on to the workers) or ignore. May be given several times' -r
complete -c panzer -l hook -d 'Run this shell command when something happens: before-reload (a failure rejects the reload), after-reload, rejected, died, gave-up or stopped. It runs as panzer\'s user, in the workers\' directory. Commands run one at a time; an event that comes again while one waits is counted, not queued. PANZER_EVENT, PANZER_COUNT, PANZER_REASON, PANZER_GENERATION, PANZER_WORKER_ID, PANZER_EXIT_CODE, PANZER_SIGNAL, PANZER_NAME and PANZER_MAIN_PID say what happened, as far as each is known. PANZER_HOOK holds one. May be given several times' -r
complete -c panzer -l hook-timeout -d 'Time that one command of --hook may take. After it, the command and all that it started get TERM, and KILL 5 seconds later [30s]' -r
complete -c panzer -l name -d 'Name of this instance [the program\'s file name]' -r
complete -c panzer -s p -l pid -d 'Write the pid to this file [NAME.pid in $RUNTIME_DIRECTORY, /run/panzer or $XDG_RUNTIME_DIR/panzer]' -r -F
complete -c panzer -l control -d 'Path of the socket that panzerctl connects to. Only panzer\'s own user and root may, unless OPT says more: group=GROUP and owner=USER may do everything, group-read=GROUP may only look (status, list, metrics); mode=0660 is the file\'s mode. Without PATH, as in ,group=deploy, the path stays as it is [NAME.sock beside NAME.pid]' -r
complete -c panzer -l log -d 'Write the workers\' stdout and stderr to this file, line by line; -: to panzer\'s own stdout. Each worker gets pipes of its own, and a slow or full disk never makes it wait. OPT: mode=0640, owner=USER, group=GROUP. Panzer rotates the file and does not follow a symbolic link. Without it the workers inherit panzer\'s stdout and stderr' -r
complete -c panzer -l stdout -d 'Write the workers\' stdout to this file, as with --log' -r
complete -c panzer -l stderr -d 'Write the workers\' stderr to this file, as with --log' -r
complete -c panzer -l log-size -d 'Rotate a log file before it grows beyond this size: FILE becomes FILE.1, FILE.1 becomes FILE.2. 0: never [1MiB]' -r
complete -c panzer -l log-keep -d 'Number of rotated files that are kept [5]' -r
complete -c panzer -l log-format -d 'json: write each line of the log, and each of panzer\'s own messages, as a JSON object [text]' -r -f -a "text\t'As they are'
json\t'Each is a JSON object'"
complete -c panzer -l preload -d 'Load the program once for each generation and fork the workers from it, so that they share its memory. The program must speak the protocol of panzer-mold(7), as with one of panzer\'s clients'
complete -c panzer -l final-exit-stop -d 'Stop all other workers gracefully when the first worker exits with a final exit code'
complete -c panzer -l check -d 'Print the value of every option and where it came from, and start nothing. Exits with 2 if a value is wrong'
complete -c panzer -s d -l daemonize -d 'Run in the background, without a terminal. Returns when all workers are ready, or with main\'s exit code if they never are. Output to a terminal goes to /dev/null after that (for workers from the beginning). A pipe stays open: redirect it if somebody reads it to its end, as in $(panzer -d ...)'
complete -c panzer -l log-compress -d 'Compress rotated files: FILE.1.gz'
complete -c panzer -l log-prefix -d 'Begin each line of the log with its time, worker, generation and stream, in colour if it goes to a terminal'
complete -c panzer -s q -l quiet -d 'Print warnings and errors only'
complete -c panzer -s v -l verbose -d 'Print every step'
complete -c panzer -s h -l help -d 'Print help'
complete -c panzer -s V -l version -d 'Print version'
