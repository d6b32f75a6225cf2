# frozen_string_literal: true

require_relative "support"

# Each example of Kamisama's README, with one `require` changed.
class KamisamaTest < PanzerTest
  WORKER = <<~'RUBY'
    require "panzer/kamisama"
    $stdout.sync = true

    def worker(worker_index)
      loop do
        puts "WORKER #{worker_index}: Crunching data..."

        sleep 60
      end
    end
  RUBY

  def test_17_instances
    app = app(WORKER + <<~'RUBY')
      Kamisama.run(:instances => 17) { |index| worker(index) }
    RUBY
    (1..17).each { |index| app.wait_for(/^WORKER #{index}: Crunching data/) }
    assert_equal 1 + 17, app.workers.size
    assert_equal 0, app.stop
  end

  def test_a_worker_that_fails_is_restarted
    app = app(<<~'RUBY')
      require "panzer/kamisama"
      $stdout.sync = true
      Kamisama.run(:instances => 2, :respawn_limit => 1000) do |index|
        puts "begun #{index}"
        raise "failed" if index == 1 && !File.exist?("failed") && File.write("failed", "")
        sleep
      end
    RUBY
    app.wait_for(/^\[WORKER 1\] Shutting down... failed/)
    app.eventually("the first worker begins again") { app.read.scan("begun 1").size == 2 }
    assert_equal 1, app.read.scan("begun 2").size
  end

  def test_workers_are_replaced_after_a_while
    app = app(<<~'RUBY')
      require "panzer/kamisama"
      $stdout.sync = true
      Kamisama.run(:instances => 2, :max_lifetime => "500ms", :healthy_after => "100ms") { |index| puts "begun #{index}"; sleep }
    RUBY
    [1, 2].each { |index| app.eventually("#{index} is replaced") { app.read.scan("begun #{index}").size >= 2 } }
    app.stop
  end

  def test_respawn_limit_and_interval
    app = app(<<~'RUBY')
      require "panzer/kamisama"
      $stdout.sync = true
      config = {
        :instances => 1,
        :respawn_limit => 3,
        :respawn_interval => 60
      }

      Kamisama.run(config) { |index| puts "begun" }
    RUBY
    assert_equal 1, app.wait_exit
    assert_equal 1 + 3, app.read.scan("begun").size
    assert_includes app.read("err"), "more than 3 respawns"
  end

  TOLD = <<~'RUBY'
    require "panzer/kamisama"
    Kamisama.run(:instances => 3) do |index|
      trap("TERM") { File.write("told-#{index}", ""); exit }
      File.write("begun-#{index}", "")
      sleep
    end
  RUBY

  def test_term_signal
    app = begun(TOLD)
    assert_equal 0, app.stop
    (1..3).each { |index| assert_path_exists app.path("told-#{index}") }
  end

  def test_kill_signal
    app = begun(TOLD)
    app.signal("KILL")
    app.wait_exit
    (1..3).each { |index| app.eventually("worker #{index} gets TERM") { File.exist?(app.path("told-#{index}")) } }
  end

  def test_ttin_and_ttou_signals
    app = begun(TOLD)
    app.signal("TTIN")
    app.eventually("there is one more") { File.exist?(app.path("begun-4")) }
    app.signal("TTOU")
    app.eventually("the oldest ends") { Dir.glob(app.path("told-*")).size == 1 }
    app.eventually("three are left") { app.workers.size == 1 + 3 }
  end

  private

  def begun(code)
    app = app(code)
    (1..3).each { |index| app.eventually("worker #{index} begins") { File.exist?(app.path("begun-#{index}")) } }
    app
  end
end
