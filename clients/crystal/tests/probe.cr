# The program that clients/testing/conform.py drives.
require "weak_ref"
require "../src/panzer"

lib LibC
  fun pause : Int
end

STDOUT.sync = false
STDOUT.flush_on_newline = false
puts "loaded"
at_exit do
  puts "exit"
  STDOUT.flush
end
raise "no database" if ENV.has_key?("CONFORM_FAIL")

# The garbage collector interrupts all threads now and then.
Thread.new { loop { LibC.pause } } if ENV.has_key?("CONFORM_THREAD")

class Garbage
  @content = StaticArray(UInt8, 1000).new(0_u8)
end

LEFT = [] of WeakRef(Garbage)
if ENV.has_key?("CONFORM_GARBAGE")
  # Otherwise Crystal collects most of it by itself.
  GC.disable
  1000.times { LEFT << WeakRef.new(Garbage.new) }
  GC.enable
end

class Probe
  include Panzer::Worker

  def before_fork
    say "before_fork"
  end

  def after_start
    say "garbage #{LEFT.count(&.value)}" unless LEFT.empty?
    say "after_start #{index}"
  end

  def run
    variables = %w(LISTEN_PID WATCHDOG_PID).map { |name| ENV.fetch(name, "-") }
    say "run #{index} #{rand(1_i64 << 60)} #{variables.join(' ')}"
    ready
    served 7
    until stopping?
      alive
      sleep 0.02
    end
    say "done #{index}"
  end

  def stop
    say "stop #{index}"
  end

  def reload
    say "reload #{index}"
  end

  def become_mold
    say "become_mold"
  end

  private def say(line)
    puts line
    STDOUT.flush
  end
end

Panzer.run(Probe.new, workers: 2, listen: "127.0.0.1:0")
