# frozen_string_literal: true

require_relative "support"

# Each example of preforker's README, with one `require` changed, and what its specs hold.
class PreforkerTest < PanzerTest
  # Notes what is said.
  SAY = { "say" => "#!/bin/sh\necho \"$@\" >> said\n" }.freeze

  def test_ping_pong
    app = app(<<~'RUBY', files: SAY, wait: true)
      require 'rubygems'
      require 'panzer/preforker'

      #At this point we can open some socket or reserve any other resource you want to share with your workers.
      #Whatever we do before Preforker.new is ran only in the master process.
      `say hi, I\\'m the master`

      Preforker.new(:timeout => 10) do |master|
        #this block is only run by each worker (10 by default)

        #first you should write the code that is needed to be ran
        #once when a new fork is created, initializations, etc.
        `say hi, I\\'m a worker`

        #now you could IO.select a socket, run an EventMachine service (see example), or as we do here,
        #just run a worker loop. Notice that you need to ask master if it wants you alive periodically or
        #else it will kill you after the timeout elapses. Respect your master!
        while master.wants_me_alive? do
          sleep 1
          `say ping pong`
        end

        #here we can do whatever we want to exit gracefully
        `say bye`


      #here we are using #start to daemonize. We could have used #run to just block and then send the INT signal with ctrl-c to stop
      end.start

      puts "I'm the launcher that forked off master, bye bye"
      puts "To kill the server just do: kill -s QUIT `cat preforker.pid`"
    RUBY
    assert_equal 0, app.code
    assert_includes app.read, "I'm the launcher that forked off master, bye bye"
    app.daemon("preforker.pid")
    app.eventually("each of ten says hi") { app.read("said").scan("hi, I'm a worker").size == 10 }
    app.wait_for(/ping pong/, "said")
    # As the example says it.
    system("kill -s QUIT `cat preforker.pid`", chdir: app.folder)
    app.wait_exit
    assert_equal 10, app.read("said").scan(/^bye$/).size
    refute_path_exists app.path("preforker.pid")
    assert_equal 10, app.read("preforker.log").scan(/Preforker Child \d+: Exiting gracefully/).size
  end

  def test_a_worker_that_stops_asking_is_killed_and_replaced
    app = app(<<~'RUBY')
      require 'panzer/preforker'
      Preforker.new(:timeout => 1, :workers => 2, :stdout_path => 'test.log') do |master|
        first = File.open('first', File::CREAT | File::EXCL | File::WRONLY) rescue nil
        puts "begun #{Process.pid}"
        sleep if first
        sleep 0.1 while master.wants_me_alive?
      end.run
    RUBY
    app.wait_for(/worker \d \(pid \d+, .*has sent no WATCHDOG=1 for 1s; aborting it/, "err")
    app.eventually("it is replaced") { app.read("test.log").scan("begun").size == 3 }
    app.stop("QUIT")
    assert_equal 1, app.read("err").scan("aborting").size
  end

  # Ruby cannot run any other thread of such a worker.
  def test_a_worker_that_is_stuck_in_c_is_killed_too
    app = app(<<~'RUBY')
      require 'panzer/preforker'
      require 'fiddle'
      Preforker.new(:timeout => 1, :workers => 1) do |master|
        sleep = Fiddle::Function.new(Fiddle::Handle::DEFAULT['sleep'], [Fiddle::TYPE_INT], Fiddle::TYPE_INT, need_gvl: true)
        sleep.call(1000)
      end.start
    RUBY
    app.daemon("preforker.pid")
    app.wait_for(/has sent no WATCHDOG=1 for 1s; aborting it/, "preforker.log")
    app.eventually("it is replaced") { app.read("preforker.log").scan("Created").size > 1 }
  end

  def test_paths_and_name
    app = app(<<~'RUBY', wait: true)
      require 'panzer/preforker'
      Preforker.new(:workers => 1, :app_name => 'Amqp example', :stdout_path => 'out.log', :stderr_path => 'err.log',
                    :pid_path => 'my.pid', :logger => Logger.new('own.log')) do |master|
        puts "hello"
        warn "alas"
        sleep 0.1 while master.wants_me_alive?
        master.logger.info("Main loop ended. Dying")
      end.start
    RUBY
    app.daemon("my.pid")
    app.wait_for(/\Ahello\n\z/, "out.log")
    app.wait_for(/^alas$/, "err.log")
    app.wait_for(/Amqp example Child \d+: Created/, "own.log")
    assert(app.workers.any? { |pid| app.title(pid) == "Amqp example Master" })
    app.stop("QUIT")
    assert_includes app.read("own.log"), "Main loop ended. Dying"
  end

  def test_stdout_stderr_and_log_are_one_file_by_default
    app = app(<<~'RUBY')
      require 'panzer/preforker'
      Preforker.new(:workers => 1) do |master|
        puts "stdout string"
        warn "stderr string"
        sleep 0.1 while master.wants_me_alive?
      end.run
    RUBY
    [/stdout string/, /stderr string/, /Logfile created on/].each { |words| app.wait_for(words, "preforker.log") }
  end

  LOOP = <<~'RUBY'
    require 'panzer/preforker'
    Preforker.new(:workers => 2) do |master|
      sleep 0.1 while master.wants_me_alive?

      master.logger.info("Main loop ended. Dying")
    end.run
  RUBY

  def test_winch_ttin_and_ttou
    app = created(LOOP, 2)
    app.signal("TTIN")
    app.eventually("there is one more") { app.read("preforker.log").scan(/Child.*Created/).size == 3 }
    app.signal("TTOU")
    app.eventually("one ends") { app.read("preforker.log").scan(/Child.*Exiting/).size == 1 }
    app.signal("WINCH")
    app.eventually("all end") { app.read("preforker.log").scan(/Child.*Exiting/).size == 3 }
    assert app.alive?(app.pid)
  end

  def test_term_and_int_are_immediate
    %w[TERM INT].each do |signal|
      app = created(LOOP, 2)
      app.stop(signal)
      refute_includes app.read("preforker.log"), "Main loop ended"
      refute_path_exists app.path("preforker.pid")
    end
  end

  # Preforker's README has "max_request_per_worker" on its list of what is to be done.
  def test_workers_are_replaced_after_some_requests
    app = app(<<~'RUBY')
      require 'panzer/preforker'
      Preforker.new(:workers => 1, :max_requests => 20, :healthy_after => "100ms", :timeout => 5) do |master|
        requests = 0
        master.served(requests += 1) while master.wants_me_alive? && sleep(0.02)
      end.run
    RUBY
    app.eventually("two have been replaced") { app.read("preforker.log").scan(/Child.*Exiting/).size >= 2 }
    app.stop
  end

  def test_workers_that_die_are_replaced
    app = app("require 'panzer/preforker'\nPreforker.new(:workers => 1, :timeout => 0.2) { |master| }.run")
    app.eventually("it is created again") { app.read("preforker.log").scan(/Child.*Created/).size > 2 }
  end

  def test_a_socket_that_the_master_opens
    port = free_port
    app = app(<<~RUBY, wait: true)
      require 'panzer/preforker'
      socket = TCPServer.new("127.0.0.1", #{port})
      Preforker.new(:timeout => 5, :workers => 2) do |master|
        while master.wants_me_alive?
          next unless socket.wait_readable(0.2)
          client = socket.accept
          client.write(client.gets)
          client.close
        end
      end.start
    RUBY
    app.daemon("preforker.pid")
    client = TCPSocket.new("127.0.0.1", port)
    client.puts("hello")
    assert_equal "hello\n", client.gets
  end

  private

  def created(code, count)
    app = app(code)
    app.eventually("they are created") { app.read("preforker.log").scan(/Child.*Created/).size == count }
    app
  end
end
