# frozen_string_literal: true

require "panzer"

module Panzer
  # Ends workers that give no sign of life for some time. The mold looks on, in a thread, so that also a worker is ended
  # that is stuck in a call which lets no other thread of it run. A mold that ends takes its watch along.
  class Watch
    # A look that comes so much late says that the mold itself did not run, and nothing of the workers.
    LATE = 1.0

    # `on_late` is called in the mold, with the pid of the worker and the seconds since its last sign.
    def initialize(timeout, &on_late)
      @timeout, @on_late = timeout, on_late
      @seen = {}
      @new = Thread::Queue.new
    end

    # In the mold, before a fork.
    def before_fork
      @reader, @writer = IO.pipe
      start unless @thread&.alive?
    end

    # In the mold, after it.
    def forked
      @writer.close
      @new << @reader
      @wake.write_nonblock(".", exception: false)
    end

    # In the worker.
    def after_start
      return unless @writer

      [@reader, @wake, @woken, *@seen.keys].each { |io| io.close unless io.closed? }
      alive!
    end

    # In the worker: a sign of life. It never blocks.
    def alive!
      @writer&.write_nonblock([Process.pid].pack("L"), exception: false)
    rescue SystemCallError
      @writer = nil # The mold is gone.
    end

    private

    Sign = Struct.new(:pid, :at)
    private_constant :Sign

    def start
      @woken, @wake = IO.pipe
      @thread = Thread.new { look while true }
      @thread.thread_variable_set(:fork_safe, true)
      @thread.name = "panzer's watch"
    end

    def look
      begun = now
      pause = @seen.values.map { |sign| sign.at + @timeout - begun }.min
      ready, = IO.select([@woken, *@seen.keys], nil, nil, pause && [pause, 0.01].max)
      slept = now - begun
      @seen.each_value { |sign| sign.at += slept } if pause && slept > pause + LATE
      ready&.each { |io| io == @woken ? take_new : hear(io) }
      end_late
    end

    def take_new
      @woken.read_nonblock(4096, exception: false)
      @seen[@new.pop] = Sign.new(nil, now) until @new.empty?
    end

    def hear(reader)
      data = reader.read_nonblock(4096, exception: false)
      return if data == :wait_readable

      if data.nil?
        @seen.delete(reader)
        return reader.close
      end
      @seen[reader] = Sign.new(data.unpack1("L"), now)
    end

    def end_late
      @seen.each do |reader, sign|
        late = now - sign.at
        next if late < @timeout || sign.pid.nil?

        # It has said nothing just now, and its end of the pipe is open: the pid is its own.
        next if reader.wait_readable(0)

        @on_late&.call(sign.pid, late)
        Process.kill("KILL", sign.pid)
        sign.at = now
      rescue Errno::ESRCH
        next
      end
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
