# frozen_string_literal: true

module ServerEngine
  # What has a configuration that can be read again, and a logger that goes by it.
  module ConfigLoader
    attr_reader :config
    attr_accessor :logger

    def initialize(config = {}, &block)
      @load_config = block || (config.respond_to?(:call) ? config : -> { config })
      @logger = nil
      reload_config
    end

    def reload_config
      @config = @load_config.call
      return unless @logger

      path = logdev
      @logger.logdev = path if !path.is_a?(IO) && @logger.respond_to?(:logdev=)
      @logger.level = @config[:log_level] || "debug"
      nil
    end

    private

    def create_logger
      @logger = @config[:logger] || (@config[:logger_class] || DaemonLogger).new(logdev, @config)
    end

    def logdev
      case @config[:log]
      when nil then $stderr
      when "-" then $stdout
      else @config[:log]
      end
    end
  end
end
