complete -c panzer -s w -l workers -d 'How many copies run; auto: one for each CPU panzer may use [auto]' -r
complete -c panzer -s l -l listen -d 'Listen there and pass the socket on as LISTEN_FDS: 8080, 127.0.0.1:8080, [::1]:8080, localhost:8080 (a socket for each address of the host), unix:/run/app.sock, unix:@name, udp:53. A port alone is of IPv4 and IPv6, and shows IPv4 clients as ::ffff:1.2.3.4: behind a proxy give one address. Port 0 is a free one, the same until panzer ends. OPT: backlog=N, nonblock, per-worker, and of a unix path mode=0660, owner=USER, group=GROUP. A socket of that address or NAME that panzer itself was started with, as by systemd, is taken. May be given several times' -r
complete -c panzer -l also-speak -d 'Tell of the listeners as these have it, too: server-starter (SERVER_STARTER_PORT; a port alone is of IPv4 only), einhorn (EINHORN_FD_0 ..., an ack counts as READY=1), nginx (NGINX), unicorn (UNICORN_FD), fpm (FPM_SOCKETS)' -r -f -a "server-starter\t'`SERVER_STARTER_PORT`, `SERVER_STARTER_GENERATION`'
einhorn\t'`EINHORN_FD_COUNT` and so on, with an acknowledgement at `EINHORN_SOCK_PATH`'
nginx\t'`NGINX`'
unicorn\t'`UNICORN_FD`'
fpm\t'`FPM_SOCKETS`'"
complete -c panzer -l listen-pid -d 'none: LISTEN_PID is not set, for a worker that starts the server as its child, such as sh -c without exec [worker]' -r -f -a "worker\t'The worker\'s pid'
none\t'Not set: for a worker that is only a wrapper around the process that takes the listeners'"
complete -c panzer -l listen-as -d 'stdin: the one listener is descriptor 0 and LISTEN_FDS is not set, as inetd\'s wait and Java\'s inheritedChannel have it [fds]' -r -f -a "fds\t'From descriptor 3 on, as `LISTEN_FDS` says'
stdin\t'The only one is descriptor 0, as inetd\'s `wait` has it'"
complete -c panzer -l share-ports -d 'Whether copies of a program that listens on its own TCP ports share them, without knowing of it; auto: all, where there is no --listen; PORTS, as in 8000,8443: these, and any other (a debugger, metrics) is the first copy\'s that binds it. A port that is bound as a lock is never shared. Without CAP_SYS_ADMIN, setuid programs have no power in the workers then [auto]' -r -f -a "auto\t''
on\t''
off\t''"
complete -c panzer -l ready -d 'When a worker is ready: accept, it is seen accepting on a listener; notify, it sent READY=1; alive, it runs; exec:CMD, that shell command exits with 0, given PANZER_WORKER_PID, PANZER_WORKER_ID and PANZER_GENERATION, and before that the worker accepts, where it has a listener; auto, accept where it has a listener, given or shared, and that can be seen, else notify if the serving generation did send it, else alive. A request by CMD to the shared address proves nothing about this worker, as others answer it too, old ones as well: give each worker an address of its own for that, with {worker} and {generation} in ARGS, or look at $PANZER_WORKER_PID [auto]' -r -f -a "auto\t'as accept if it has a listener and that can be seen; else as notify if the serving generation sent READY=1, else as alive'
accept\t'once it is seen accepting on one of its listeners'
notify\t'once it has sent READY=1'
alive\t'once it runs'
exec:CMD\t'once it accepts, if it has a listener, and this shell command exits with 0'"
complete -c panzer -l ready-timeout -d 'Fail a generation that is not ready within this time. Where there is nothing to go back to, a worker that is not ready in time is started anew, with twice the time at each further try, up to 16 times [60s]' -r
complete -c panzer -l bake -d 'How long a new generation must live, wholly ready, beside the old one before that is retired [1s]' -r
complete -c panzer -l surge -d 'How many workers beyond --workers a reload may run at once, as in 1, 25% or all. Less than all: the new generation replaces the old one share by share, each ready before as many of the old one are stopped; only the first share bakes [all]' -r
complete -c panzer -l timeout -d 'How long a worker may take to stop gracefully: the first wait of --stop [60s]' -r
complete -c panzer -l stop -d 'Signals and waits by which a worker is stopped [TERM/60s/INT/5s/KILL]' -r
complete -c panzer -l retire -d 'Signals and waits by which a worker is stopped that a reload or a scale ends [as --stop]' -r
complete -c panzer -l delay -d 'First delay before a respawn; it doubles with each further failure, and is 10ms at least from the second one on. None after a healthy life, nor for the first death of a worker that was ready [100ms]' -r
complete -c panzer -l delay-max -d 'Longest delay before a respawn, at least 10ms [30s]' -r
complete -c panzer -l healthy-after -d 'A worker that ran this long counts as healthy; its restart delay is reset. At least 100ms [10s]' -r
complete -c panzer -l respawn-limit -d 'Give up, with exit code 1, after more than N respawns within D, as in 10/60s [never]' -r
complete -c panzer -l final-exit-codes -d 'A worker that exits with one of these codes, as in 0,64-78, is not respawned; once all have, panzer exits with CODE, as in 5,6=0, or else with the highest of theirs. In a new generation that does not serve yet, such an exit is a failed release [none]' -r
complete -c panzer -l start-delay -d 'The pause between two starts of workers, more or less by up to 20 %; --ready-timeout counts from the last one [0s]' -r
complete -c panzer -l max-draining -d 'Old generations that may drain at once; of more, the one that has drained for longest goes on to what --stop says after its first wait [4]' -r
complete -c panzer -l chdir -d 'The workers\' working directory, entered anew by each generation' -r -F
complete -c panzer -l env -d 'Set this in the workers\' environment, with the placeholders of ARGS. May be given several times' -r
complete -c panzer -l env-file -d 'Set the variables of this file as well, read anew by each generation: NAME=VALUE lines, quotes and # comments allowed; with a \'-\' before its name it may be missing. --env wins over it. May be given several times' -r
complete -c panzer -l user -d 'The user, and after a colon the group, that the workers run as, without any capability; looked up anew by each generation. Their HOME, USER, LOGNAME and SHELL are that user\'s. They may open /dev/stdout and /dev/stderr if these are pipes, or a terminal of root\'s. Needs root' -r
complete -c panzer -l group -d 'The workers\' group, where it is not to be the user\'s own' -r
complete -c panzer -l umask -d 'What is taken away from the mode of files that the workers create, as in 027' -r
complete -c panzer -l nice -d 'The workers\' nice value, from -20 (first) to 19 (last)' -r
complete -c panzer -l config -d 'Read options from this YAML file: their names as keys, a list or a map where one may be given several times, and program and args. Flags win over environment, over file [config/panzer.yml, if it exists]' -r -F
complete -c panzer -l signals -d 'Whose habits signals to panzer follow: panzer, serverengine, preforker, kamisama, unicorn, server-starter or einhorn; panzer(1) has the table [panzer]' -r -f -a "panzer\t''
serverengine\t''
preforker\t''
kamisama\t''
unicorn\t''
server-starter\t''
einhorn\t''"
complete -c panzer -l on -d 'What a signal does instead, as TTIN=scale-up: reload, detach, restart-workers, reopen, stop, stop-then-now, stop-now, scale-up, scale-down, scale-down-oldest, quiet, restart, status, dump or ignore. May be given several times' -r
complete -c panzer -l name -d 'What this instance is called [the program\'s file name]' -r
complete -c panzer -s p -l pid -d 'Write the pid there [NAME.pid in $RUNTIME_DIRECTORY, /run/panzer or $XDG_RUNTIME_DIR/panzer]' -r -F
complete -c panzer -l control -d 'Take commands of panzerctl there [NAME.sock beside NAME.pid]' -r -F
complete -c panzer -l final-exit-stop -d 'The first worker that exits with a final exit code ends all: the others are stopped gracefully'
complete -c panzer -l check -d 'Print every option\'s value and where it came from, and start nothing; exits with 2 where one is wrong'
complete -c panzer -s d -l daemonize -d 'Run in the background, without a terminal: return once all workers are ready, with the exit code if they never are. Afterwards, stdout and stderr lead nowhere if they are a terminal, for the workers from the start. A pipe stays open: redirect it where somebody reads it to its end, as in $(panzer -d ...)'
complete -c panzer -s q -l quiet -d 'Say only what is wrong'
complete -c panzer -s v -l verbose -d 'Say each step'
complete -c panzer -s h -l help -d 'Print help'
complete -c panzer -s V -l version -d 'Print version'
