# frozen_string_literal: true

require "panzer/serverengine/socket_manager"

module ServerEngine
  # What a worker of the type spawn gets, to start its process.
  class ProcessManager
    def initialize(command_sender)
      @has_pipe = command_sender == "pipe"
    end

    # As Process.spawn, but it returns a Monitor.
    def spawn(*command)
      environment = command.first.is_a?(Hash) ? command.shift : {}
      options = command.last.is_a?(Hash) ? command.pop : {}
      environment = { "SERVERENGINE_SOCKETMANAGER_INTERNAL_TOKEN" => SocketManager::INTERNAL_TOKEN }.merge(environment)
      return Monitor.new(Process.spawn(environment, *command, options)) unless @has_pipe

      reader, writer = IO.pipe
      pid = Process.spawn(environment, *command, options.merge(in: reader))
      reader.close
      Monitor.new(pid, writer)
    end

    # A process that was started.
    class Monitor
      attr_reader :pid

      def initialize(pid, pipe = nil)
        @pid, @pipe = pid, pipe
        @pipe&.sync = true
      end

      # By the pipe if there is one, and otherwise by the signal, if there is one.
      def tell(command, signal)
        @pipe ? @pipe.write("#{command}\n") : signal && Process.kill(signal, @pid)
      rescue SystemCallError
        nil # It has ended.
      end

      # Its Process::Status.
      def join
        @status ||= Process.wait2(@pid).last
      end
    end
  end
end
