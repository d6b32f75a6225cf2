# frozen_string_literal: true

module ServerEngine
  # One worker, which is extended by the program's worker module.
  class Worker
    attr_reader :server, :worker_id
    attr_accessor :logger

    def initialize(server, worker_id)
      @server, @worker_id, @logger = server, worker_id, server.logger
    end

    def config
      server.config
    end

    def before_fork; end

    def run
      raise NoMethodError, "Worker#run method is not implemented"
    end

    def spawn(_process_manager)
      raise NoMethodError, "Worker#spawn(process_manager) method is required for worker_type=spawn"
    end

    def stop; end

    def reload; end

    def after_start; end
  end
end
