# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_panzerctl_global_optspecs
    string join \n name= p/pid= control= timeout= h/help V/version
end

function __fish_panzerctl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_panzerctl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_panzerctl_using_subcommand
    set -l cmd (__fish_panzerctl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c panzerctl -n "__fish_panzerctl_needs_command" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_needs_command" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_needs_command" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_needs_command" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_needs_command" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -s V -l version -d 'Print version'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "list" -d 'List the panzers that run, with their state; or the one that is named'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "status" -d 'Show generations, workers and accept queues'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "top" -d 'Show the busiest workers, repainted each second; keys sort the list, reload, and quit'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "logs" -d 'Show the last lines of the workers\' logs; with -f, also the lines that follow'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "metrics" -d 'Print counters and gauges in Prometheus\' text format'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "reload" -d 'Start a new generation, and wait until it serves or has failed'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "drain" -d 'Wait until no old generation drains any more; with --now, end those that drain'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "restart" -d 'Upgrade panzer itself in place; workers are not touched'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "stop" -d 'Stop gracefully, and wait until panzer has ended and its pid file is free'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "shutdown" -d 'Stop gracefully, and wait until panzer has ended and its pid file is free'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "exit" -d 'Stop quickly: the stop schedule without its first step'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "scale" -d 'Change the number of workers to N, or by N'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "quiet" -d 'End all workers and keep main; a reload or a scale brings workers back'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "signal" -d 'Send a signal to the workers of the serving generation'
complete -c panzerctl -n "__fish_panzerctl_needs_command" -f -a "reopen" -d 'Open the log files anew, after they were moved (--log)'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand list" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand list" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand list" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand list" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand list" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l interval -d 'Interval of --watch, at least 100ms' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l json -d 'Print JSON'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l wait-ready -d 'Wait until it runs and is ready'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -l watch -d 'Show the state at each interval, in place on a terminal; q or Ctrl-C ends it'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand top" -l interval -d 'Time between two looks, at least 100ms' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand top" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand top" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand top" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand top" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand top" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -s n -l lines -d 'Number of lines to begin with, from each file' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -l worker -d 'Only lines of this worker. This needs --log-prefix or --log-format json' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -l generation -d 'Only lines of this generation. This needs --log-prefix or --log-format json' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -s f -l follow -d 'Go on with the lines that follow'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand logs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand metrics" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand metrics" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand metrics" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand metrics" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -l no-wait -d 'Do not wait'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -l drained -d 'Also wait until the old generation is gone'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -l generation -d 'Only this generation' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -l now -d 'Go on to the rest of the stop schedule, without its first step'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -l no-wait -d 'Do not wait'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand drain" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand restart" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand restart" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand restart" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand restart" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand restart" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand stop" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand stop" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand stop" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand stop" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand stop" -l no-wait -d 'Do not wait'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand stop" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand shutdown" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand shutdown" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand shutdown" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand shutdown" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand shutdown" -l no-wait -d 'Do not wait'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand shutdown" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand exit" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand exit" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand exit" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand exit" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand exit" -l no-wait -d 'Do not wait'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand exit" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand scale" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand scale" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand scale" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand scale" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand scale" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand quiet" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand quiet" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand quiet" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand quiet" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand quiet" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand signal" -l worker -d 'Only to this worker' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand signal" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand signal" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand signal" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand signal" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand signal" -s h -l help -d 'Print help'
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reopen" -l name -d 'The panzer with this name' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reopen" -s p -l pid -d 'The panzer with this pid file' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reopen" -l control -d 'The panzer with this control socket' -r -F
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reopen" -l timeout -d 'Give up after this time [5s; commands that wait: no limit]' -r
complete -c panzerctl -n "__fish_panzerctl_using_subcommand reopen" -s h -l help -d 'Print help'
