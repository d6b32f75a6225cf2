# frozen_string_literal: true

require "yaml"

module ServerEngine
  # The keys of a configuration as panzer's options.
  class Options
    TYPES = %w[embedded thread process spawn].freeze
    # Options that main can read again: they stand in a file, which the mold writes anew when the configuration changes.
    DYNAMIC = %i[workers stop start_delay delay delay_max].freeze
    # The signal by which the mold has main read that file. ServerEngine has no meaning for it.
    REREAD = "WINCH"
    NEVER = "366d"
    # How much longer or shorter than configured panzer waits between two starts. It is ServerEngine's default, too.
    OWN_RAND = 0.2
    # Keys that have nothing to do here, and why.
    IDLE = {
      server_restart_wait: "a server that ends is loaded again after panzer's --delay, as workers are respawned",
      server_detach_wait: "the new server begins at once, beside the old one",
      windows_daemon_cmdline: "this is Linux"
    }.freeze

    IDLE_BUT_FOR_SPAWN = {
      worker_immediate_kill_interval: "a QUIT ends a worker at once",
      worker_immediate_kill_interval_increment: "a QUIT ends a worker at once",
      worker_reload_signal: "it is for the worker_type 'spawn'"
    }.freeze

    def self.check(config)
      type = config[:worker_type] || "embedded"
      return if TYPES.include?(type.to_s)

      raise ArgumentError, "unexpected :worker_type option #{type}; take one of #{TYPES.join(", ")}"
    end

    # Says so of each key that does nothing.
    def self.tell_of_idle(config, logger)
      idle = config[:worker_type].to_s == "spawn" ? IDLE : IDLE.merge(IDLE_BUT_FOR_SPAWN)
      idle.each { |key, why| logger.warn("#{key} does nothing under panzer: #{why}") if config.key?(key) }
      if config.fetch(:start_worker_delay_rand, OWN_RAND) != OWN_RAND
        logger.warn("start_worker_delay_rand is #{OWN_RAND} under panzer: --start-delay is up to 20 % longer or shorter")
      end
      return unless config[:exit_on_detach]

      logger.warn("exit_on_detach: panzer stays until the workers have ended")
    end

    def initialize(config)
      @config = config
      @type = (config[:worker_type] || "embedded").to_s
    end

    # All options, for the command line. Those that can be read again are in a file if the user has none of his own.
    def at_start(config)
      return { **fixed, **dynamic } if user_has_file?

      path = file_path(config)
      write(path)
      # An argument of the user's wins over the file, as over the code.
      { **fixed, **DYNAMIC.to_h { |name| [name, nil] }, config: path }
    rescue SystemCallError
      { **fixed, **dynamic }
    end

    # Of a configuration that was read again: main is told what differs.
    def tell_main(earlier, logger)
      return if dynamic == earlier.dynamic

      path = config_of_main or return
      write(path)
      Process.kill(REREAD, Panzer.main_pid)
    rescue SystemCallError => e
      logger.warn("the new number of workers, delays and waits hold after a restart: #{e.message}")
    end

    def dynamic
      interval = @config[:restart_worker_interval].to_f
      {
        workers: %w[process spawn].include?(@type) ? @config[:workers] || 1 : 1,
        stop: "TERM/#{wait(:worker_graceful_kill_timeout)}/QUIT/#{wait(:worker_immediate_kill_timeout)}/KILL",
        start_delay: duration(@config[:start_worker_delay]),
        delay: interval.positive? ? duration(interval) : nil,
        delay_max: interval.positive? ? duration(interval) : nil
      }
    end

    private

    def fixed
      codes = Array(@config[:unrecoverable_exit_codes])
      {
        name: @config[:daemon_process_name]&.gsub(/[^\w.@-]+/, "-"),
        daemonize: !!@config[:daemonize],
        pid: @config[:pid_path],
        user: @config[:chuser],
        group: @config[:chgroup],
        umask: @config[:chumask],
        watchdog: @type == "process" ? duration(@config[:worker_heartbeat_timeout] || 180) : nil,
        signals: :serverengine,
        on: changed_signals,
        final_exit_codes: codes.empty? ? nil : "#{codes.join(",")}=0",
        final_exit_stop: !codes.empty? && !!@config[:stop_immediately_at_unrecoverable_exit]
      }
    end

    def changed_signals
      detaches = @config[:supervisor] && @config.fetch(:enable_detach, true) && !@config[:exit_on_detach]
      changed = { USR2: @config[:disable_reload] ? "ignore" : "pass", CONT: @config[:disable_sigdump] ? "ignore" : "pass" }
      changed[:INT] = "stop" unless detaches
      # These types know no immediate stop.
      changed.update(QUIT: "stop", HUP: "reload") if %w[embedded thread].include?(@type)
      # The workers end by themselves, and the server that is there forks others.
      changed.update(USR1: "pass", HUP: "pass") if @config[:restart_server_process] == false
      changed[REREAD.to_sym] = "reread"
      changed
    end

    def wait(key)
      seconds = @config[key] || 600
      seconds.negative? ? NEVER : duration(seconds)
    end

    def duration(seconds)
      seconds && "#{(seconds * 1000).round}ms"
    end

    def user_has_file?
      ENV.key?("PANZER_CONFIG") || File.exist?("config/panzer.yml") || ARGV.any? { |word| word =~ /\A--config(=|\z)/ }
    end

    def file_path(config)
      folder = ENV["RUNTIME_DIRECTORY"]&.split(":")&.first || ENV["XDG_RUNTIME_DIR"]
      folder ||= config[:pid_path] ? File.dirname(config[:pid_path]) : "."
      File.expand_path("#{File.basename($PROGRAM_NAME, ".*").sub(/\A-+/, "")}.serverengine.yml", folder)
    end

    def write(path)
      text = "# Written by panzer/serverengine from the program's own configuration.\n"
      text += YAML.dump(dynamic.compact.to_h { |name, value| [name.to_s.tr("_", "-"), value] })
      temporary = "#{path}.#{Process.pid}"
      File.write(temporary, text, mode: File::WRONLY | File::CREAT | File::EXCL, perm: 0o600)
      File.rename(temporary, path)
    end

    def config_of_main
      words = File.binread("/proc/#{Panzer.main_pid}/cmdline").split("\0")
      words[words.index("--config").to_i + 1] if words.include?("--config")
    end
  end
end
