complete -c panzer -s w -l workers -d 'How many copies run; auto: one for each CPU panzer may use' -r
complete -c panzer -s l -l listen -d 'Listen there and pass the socket on as LISTEN_FDS: 8080, 127.0.0.1:8080, [::1]:8080, unix:/run/app.sock, unix:@name; OPT: backlog=N, nonblock. May be given several times' -r
complete -c panzer -l share-ports -d 'Whether copies of a program that binds its own TCP ports share them, without knowing of it: on, off; auto, on if there is no --listen. Without CAP_SYS_ADMIN it takes away the power of setuid programs in the workers [auto]' -r -f -a "auto\t''
on\t''
off\t''"
complete -c panzer -l ready -d 'When a worker is ready: accept, it is seen accepting on a listener; notify, it sent READY=1; alive, it runs; exec:CMD, that shell command exits with 0, given PANZER_WORKER_PID and PANZER_WORKER_ID; auto, accept where it has a listener and that can be seen, else notify if the serving generation did send it, else alive' -r -f -a "auto\t''
accept\t''
notify\t''
alive\t''
exec:CMD\t''"
complete -c panzer -l ready-timeout -d 'A generation that is not ready by then has failed [60s]' -r
complete -c panzer -l bake -d 'How long a new generation must live, wholly ready, beside the old one before that is retired [1s]' -r
complete -c panzer -l timeout -d 'How long a worker may take to stop gracefully: the first wait of --stop [60s]' -r
complete -c panzer -l stop -d 'Signals and waits by which a worker is stopped [TERM/60s/INT/5s/KILL]' -r
complete -c panzer -l delay -d 'The first delay before a respawn; it doubles with each further one. After a healthy life there is none [100ms]' -r
complete -c panzer -l delay-max -d 'The longest delay before a respawn [30s]' -r
complete -c panzer -l healthy-after -d 'A worker that lived this long was healthy [10s]' -r
complete -c panzer -l respawn-limit -d 'Give up, with exit code 1, after more than N respawns within D, as in 10/60s [never]' -r
complete -c panzer -l chdir -d 'The workers\' working directory, entered anew by each generation' -r -F
complete -c panzer -l env -d 'Set this in the workers\' environment, with the placeholders of ARGS. May be given several times' -r
complete -c panzer -s p -l pid -d 'Write the pid there [NAME.pid in $RUNTIME_DIRECTORY, /run/panzer or $XDG_RUNTIME_DIR/panzer]' -r -F
complete -c panzer -l name -d 'What this instance is called [the program\'s file name]' -r
complete -c panzer -s q -l quiet -d 'Say only what is wrong'
complete -c panzer -s v -l verbose -d 'Say each step'
complete -c panzer -s h -l help -d 'Print help'
complete -c panzer -s V -l version -d 'Print version'
