# frozen_string_literal: true

# The program that clients/testing/conform.py drives.

require_relative "../lib/panzer"

def say(*words)
  $stdout.puts(words.join(" "))
  $stdout.flush
end

puts "loaded"
at_exit { say("exit") }
raise "no database" if ENV.key?("CONFORM_FAIL")
Thread.new { sleep } if ENV.key?("CONFORM_THREAD")

class Garbage
end

if ENV.key?("CONFORM_GARBAGE")
  # Otherwise Ruby collects most of it by itself.
  GC.disable
  1000.times { Garbage.new }
end

class Probe
  include Panzer::Worker

  def before_fork
    say("before_fork")
  end

  def after_start
    say("garbage", ObjectSpace.each_object(Garbage).count) if ENV.key?("CONFORM_GARBAGE")
    say("after_start", index)
  end

  def run
    say("run", index, rand(2**60), ENV.fetch("LISTEN_PID", "-"), ENV.fetch("WATCHDOG_PID", "-"))
    ready!
    served(7)
    until stopping?
      alive!
      sleep(0.02)
    end
    say("done", index)
  end

  def stop
    say("stop", index)
  end

  def reload
    say("reload", index)
  end

  def become_mold
    say("become_mold")
  end
end

Panzer.run(Probe, workers: 2, listen: "127.0.0.1:0")
