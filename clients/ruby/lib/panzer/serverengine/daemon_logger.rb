# frozen_string_literal: true

require "logger"

module ServerEngine
  # Ruby's Logger, which many processes may write to one rotated file, and with the level 'trace' below 'debug'.
  class DaemonLogger < Logger
    # The levels of this logger.
    module Severity
      include Logger::Severity
      TRACE = -1
    end
    include Severity

    LEVELS = %w[trace debug info warn error fatal].freeze

    def initialize(logdev, config = {})
      @rotate_age, @rotate_size = config[:log_rotate_age] || 5, config[:log_rotate_size] || 1_048_576
      super(nil)
      self.level = config[:log_level] || "debug"
      self.logdev = logdev
    end

    # A path, or something that can be written to.
    def logdev=(logdev)
      return if @file && @file.filename == logdev

      old, @file = @file, nil
      if logdev.respond_to?(:write)
        logdev.sync = true if logdev.respond_to?(:sync=)
        @logdev = logdev
      else
        @file = LogDevice.new(logdev, shift_age: @rotate_age, shift_size: @rotate_size)
        @logdev = @file.extend(FollowsRotation)
      end
      old&.close
    end

    def level=(level)
      number = level.is_a?(Integer) ? level : LEVELS.index(level.to_s.downcase)&.pred
      raise ArgumentError, "invalid log level: #{level}" unless number&.between?(TRACE, FATAL)

      super(number)
    end

    def add(severity, message = nil, progname = nil)
      severity ||= UNKNOWN
      return true if severity < level

      message = block_given? ? yield : (text, progname = progname, nil; text) if message.nil?
      label = severity == TRACE ? "TRACE" : format_severity(severity)
      self << format_message(label, Time.now, progname || @progname, message)
      true
    end
    alias log add

    def <<(message)
      @logdev&.write(message)
      self
    end

    def trace(progname = nil, &block)
      add(TRACE, nil, progname, &block)
    end

    def trace?
      level <= TRACE
    end

    def reopen!
      @file&.reopen
      nil
    end

    def reopen(*)
      reopen!
      true
    rescue SystemCallError
      false
    end

    def close
      @file&.close
      nil
    end

    # Looks once a second whether the path leads to another file, as after a rotation by another process or a tool.
    module FollowsRotation
      def write(message)
        now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
        if now - (@looked ||= 0) > 1
          @looked = now
          reopen unless same_file?
        end
        super
      end

      private

      def same_file?
        there, here = File.stat(filename), dev.stat
        [there.ino, there.dev] == [here.ino, here.dev]
      rescue SystemCallError
        false
      end
    end
  end
end
