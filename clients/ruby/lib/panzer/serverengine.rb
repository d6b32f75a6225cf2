# frozen_string_literal: true

require "panzer"
require "panzer/serverengine/blocking_flag"
require "panzer/serverengine/daemon_logger"
require "panzer/serverengine/config_loader"
require "panzer/serverengine/options"
require "panzer/serverengine/socket_manager"
require "panzer/serverengine/process_manager"
require "panzer/serverengine/server"
require "panzer/serverengine/worker"
require "panzer/serverengine/signals"
require "panzer/serverengine/workers"

# ServerEngine's interface on top of panzer: `require "panzer/serverengine"` in the place of `require "serverengine"`.
# Panzer is its supervisor, and its server process is the mold: it is loaded once, and forks the workers.
module ServerEngine
  # `config` may be a hash, or a proc or a block, which is called again when the configuration is to be reloaded.
  def self.create(server_module, worker_module, config = {}, &block)
    Daemon.new(server_module, worker_module, config, &block)
  end

  def self.windows?
    false
  end

  def self.ruby_bin_path
    RbConfig.ruby
  end

  def self.dump_uncaught_error(error)
    $stderr.write("Unexpected error #{error}\n#{error.backtrace&.map { |line| "  #{line}\n" }&.join}")
    nil
  end

  # The whole program: by hand it starts panzer, and under panzer it is the server.
  class Daemon
    include ConfigLoader

    # A Server, once `run` was called under panzer.
    attr_reader :server

    def initialize(server_module, worker_module, config = {}, &block)
      @server_module, @worker_module = server_module, worker_module
      super(config, &block)
      Options.check(@config)
    end

    # Does not return.
    def run
      Panzer.started? ? serve : launch
    end

    private

    def launch
      options = Options.new(@config)
      deployment = Panzer::Deployment.new(options.at_start(@config))
      deployment.execute unless @config[:daemonize]
      exit(deployment.run.success? ? 0 : @config[:daemonize_error_exit_code] || 1)
    end

    def serve
      $0 = title if title
      create_logger
      Options.tell_of_idle(@config, @logger) if Panzer.mold?
      @server = Server.create(@server_module, @worker_module, @load_config, @logger)
      @server.after_start if @config[:supervisor]
      @server.before_run
      workers = Workers.of(@server)
      begin
        Panzer.run(workers)
      rescue SystemExit
        @server.end_of_run { workers.wait_for_end if Panzer.mold? }
        raise
      rescue Exception # rubocop:disable Lint/RescueException -- a signal's, too
        @server.end_of_run
        raise
      end
    end

    def title
      @config[:server_process_name] || @config[:daemon_process_name]
    end
  end
end
