# frozen_string_literal: true

module ServerEngine
  # The server, which is extended by the program's server module. It lives in the mold; each worker has a copy.
  class Server
    include ConfigLoader

    # Called after the server's process has begun, if supervisor is true.
    def after_start; end

    # Called before the workers are started.
    def before_run; end

    # Called before the end.
    def after_run; end

    # Called when the server is to end. Calling it asks for that end.
    def stop(stop_graceful)
      ask(stop_graceful ? "TERM" : "QUIT", stop_graceful ? "graceful stop" : "immediate stop")
    end

    # Asks panzer for new workers, from a server that is loaded anew.
    def restart(stop_graceful)
      ask(stop_graceful ? "USR1" : "HUP", stop_graceful ? "graceful restart" : "immediate restart")
    end

    # Reads the configuration again, and opens the log anew.
    def reload
      @logger.info("Received reload") if Panzer.mold?
      earlier = Options.new(@config)
      reload_config
      @logger.reopen! if @logger.respond_to?(:reopen!)
      Options.new(@config).tell_main(earlier, @logger) if Panzer.mold?
    end

    def create_worker(worker_id)
      worker = Worker.new(self, worker_id)
      worker.extend(Initializer)
      worker.extend(@worker_module)
      worker.instance_eval { initialize }
      worker
    end

    # The block waits for the workers, which may need what `after_run` takes away.
    def end_of_run
      # Panzer has asked for this end: there is nobody to ask.
      @is_ending = true
      stop(true)
      yield if block_given?
    ensure
      after_run
    end

    # Takes the place of the own `initialize`, which has run, if the program's module has none.
    module Initializer
      def initialize; end
    end

    def self.create(server_module, worker_module, load_config, logger)
      server = new(load_config)
      server.instance_variable_set(:@worker_module, worker_module)
      server.logger = logger
      server.extend(Initializer)
      server.extend(server_module) if server_module
      server.instance_eval { initialize }
      server
    end

    private

    def ask(signal, words)
      return if @is_ending

      @logger&.info("Received #{words}")
      Process.kill(signal, Panzer.main_pid)
      nil
    end
  end
end
