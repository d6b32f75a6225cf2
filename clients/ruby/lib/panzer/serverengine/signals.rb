# frozen_string_literal: true

require "objspace"

module ServerEngine
  # Calls a block for each signal, in a thread: a handler of a signal may not lock a mutex, and so may not write to a log.
  class SignalThread < Thread
    def initialize
      @handlers = {}
      @queue = Thread::Queue.new
      yield self if block_given?
      super() { main }
      self.name = "signals"
    end

    def trap(signal, command = nil, &block)
      signal = signal.to_s.upcase.delete_prefix("SIG").to_sym
      return Kernel.trap(signal, command) unless block

      @handlers[signal] = block
      Kernel.trap(signal) { @queue << signal }
    end

    private

    def main
      while (signal = @queue.pop)
        begin
          @handlers[signal].call(signal)
        rescue StandardError => e
          ServerEngine.dump_uncaught_error(e)
        end
      end
    end
  end

  # What CONT asks for: where the threads are, and what fills the memory.
  module Sigdump
    def self.dump(path = "/tmp/sigdump-#{Process.pid}.log")
      File.open(path, File::WRONLY | File::CREAT | File::TRUNC | File::NOFOLLOW, 0o600) do |file|
        file.puts("Sigdump at #{Time.now} process #{Process.pid} (#{$0})")
        Thread.list.each { |thread| show(thread, file) }
        file.puts("  GC stat:")
        GC.stat.each { |name, value| file.puts("    #{name}: #{value}") }
        file.puts("  Built-in objects:")
        ObjectSpace.count_objects.each { |type, count| file.puts("    #{type}: #{count}") }
        file.puts("  Memory of objects: #{ObjectSpace.memsize_of_all} bytes")
        file.puts(File.read("/proc/self/status")[/^VmRSS.*$/].to_s)
      end
    end

    def self.show(thread, file)
      file.puts("  Thread #{thread.inspect} status=#{thread.status} priority=#{thread.priority}")
      (thread.backtrace || []).each { |line| file.puts("      #{line}") }
    end
    private_class_method :show
  end
end
