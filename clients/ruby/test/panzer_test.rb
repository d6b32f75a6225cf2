# frozen_string_literal: true

require_relative "support"

# What panzer.rb does beyond the protocol, which ../../testing/conform.py holds.
class ClientTest < PanzerTest
  def test_a_block
    app = app(<<~'RUBY')
      require "panzer"
      $stdout.sync = true
      puts "loaded"
      Panzer.run(workers: 3, bake: 0.05) do |worker|
        puts "run #{worker.index}"
        sleep 0.02 until worker.stopping?
        puts "done #{worker.index}"
      end
    RUBY
    3.times { |index| app.wait_for(/^run #{index}$/) }
    assert_equal 0, app.stop
    assert_equal 3, app.read.scan("done").size
    # Once to find panzer, and once as the mold.
    assert_equal 2, app.read.scan("loaded").size
  end

  def test_a_worker_that_knows_nothing_of_term_ends_by_it
    app = app(<<~'RUBY')
      require "panzer"
      Panzer.run(workers: 1) do
        File.write("begun", "")
        sleep
      ensure
        File.write("ensured", "")
      end
    RUBY
    app.eventually("it begins") { File.exist?(app.path("begun")) }
    assert_equal 0, app.stop
    assert_path_exists app.path("ensured")
  end

  def test_an_option_that_panzer_does_not_have
    app = app("require 'panzer'\nPanzer.run(wokers: 3) { }", wait: true)
    app.wait_exit
    assert_equal 1, app.code
    assert_match(/panzer has no option named wokers; did you mean workers\? \(ArgumentError\)/, app.read("err"))
  end

  def test_what_is_no_worker
    app = app("require 'panzer'\nPanzer.run(Object.new)", wait: true)
    assert_match(/takes a block, or an object that has a method named run \(ArgumentError\)/, app.read("err"))
  end

  def test_options_of_every_kind
    flags = flags_of(<<~'RUBY')
      Panzer.run(workers: 2, listen: ["8000", "unix:x.sock"], env: { A: "b c" }, umask: 0o27, ready_timeout: 1.5,
                 timeout: 30, final_exit_codes: [0, 64..78], quiet: true, daemonize: false, share_ports: nil,
                 signals: :server_starter, on: { TTIN: "scale-up" }) { }
    RUBY
    assert_equal %w[--preload --name app --workers 2 --listen 8000 --listen unix:x.sock --env] + ["A=b c"] +
                 %w[--umask 027 --ready-timeout 1500ms --timeout 30 --final-exit-codes 0 --final-exit-codes 64-78 --quiet
                    --signals server-starter --on TTIN=scale-up], flags
  end

  def test_flags_and_variables_of_the_user_win
    code = 'Panzer.run(workers: 2, bake: "1s", stop: "TERM/1s/KILL", quiet: true) { }'
    flags = flags_of(code, args: %w[--workers 4 --stop=INT/1s/KILL -- --bake 3s], env: { "PANZER_BAKE" => "2s" })
    assert_equal %w[--preload --name app --workers 4 --stop INT/1s/KILL --quiet], flags
  end

  def test_flags_of_the_interpreter_stay
    words = words_of("$0 = 'another title'\nPanzer.run { }", args: %w[one two])
    assert_equal ["--preload", "--name", "app", "--", RbConfig.ruby, "-W", "app.rb", "one", "two"], words
  end

  def test_an_ensure_around_run_is_not_run_in_the_workers
    app = app(<<~'RUBY')
      require "panzer"
      $stdout.sync = true
      begin
        Panzer.run(workers: 1) { |worker| puts "run"; sleep 0.02 until worker.stopping?; puts "done" }
      ensure
        puts "ensured"
      end
    RUBY
    app.wait_for(/^run$/)
    app.stop
    assert_includes app.read, "done"
    assert_equal 1, app.read.scan("ensured").size
  end

  def test_a_release_that_cannot_be_loaded
    app = app(<<~'RUBY')
      require "panzer"
      raise "no database" if File.exist?("broken")
      Panzer.run(workers: 1, bake: "50ms") { |worker| File.write("begun", ""); sleep 0.02 until worker.stopping? }
    RUBY
    app.eventually("it begins") { File.exist?(app.path("begun")) }
    app.wait_for(/ready|serves/, "err")
    File.write(app.path("broken"), "")
    app.signal("USR1")
    app.wait_for(/reload failed.*the mold cannot load: RuntimeError: no database/, "err")
    assert_equal 0, app.stop
  end

  private

  def flags_of(...)
    words_of(...).take_while { |word| word != "--" }
  end

  # What panzer is executed with: by one that shows it, and has the options of the real one.
  def words_of(code, args: [], env: {})
    script = "#!/bin/sh\n[ \"$1\" = --help ] && exec #{ENV.fetch("PANZER")} --help\nprintf '%s\\n' \"$@\"\n"
    app = app("require 'panzer'\n#{code}", args: args, env: { "PANZER" => "./false", **env },
              files: { "false" => script })
    app.wait_exit
    app.read.split("\n")
  end
end
