# frozen_string_literal: true

require_relative "support"

# Each example of ServerEngine's README, with one `require` changed, and what it says of them.
class ServerEngineTest < PanzerTest
  # Says the same under each of the examples.
  AWESOME = <<~'RUBY'
    require 'panzer/serverengine'

    module MyWorker
      def run
        until @stop
          logger.info "Awesome work!"
          sleep 1
        end
        logger.info "stopped #{worker_id}"
      end

      def stop
        @stop = true
      end
    end
  RUBY

  def test_simplest_server
    app = app(<<~'RUBY', wait: true)
      require 'panzer/serverengine'

      module MyWorker
        def run
          until @stop
            logger.info "Awesome work!"
            sleep 1
          end
        end

        def stop
          @stop = true
        end
      end

      se = ServerEngine.create(nil, MyWorker, {
        daemonize: true,
        log: 'myserver.log',
        pid_path: 'myserver.pid',
      })
      se.run
    RUBY
    assert_equal 0, app.code
    app.daemon("myserver.pid").wait_for(/INFO.*Awesome work!/, "myserver.log")
    app.stop
    refute_path_exists app.path("myserver.pid")
  end

  def test_multiprocess_server
    app = app(AWESOME + <<~'RUBY', wait: true)
      se = ServerEngine.create(nil, MyWorker, {
        daemonize: true,
        log: 'myserver.log',
        pid_path: 'myserver.pid',
        worker_type: 'process',
        workers: 4,
      })
      se.run
    RUBY
    app.daemon("myserver.pid")
    app.eventually("four work") { app.read("myserver.log").scan(/#(\d+)\]  INFO.*Awesome/).uniq.size == 4 }
    app.stop
    4.times { |id| assert_match(/stopped #{id}/, app.read("myserver.log")) }
  end

  def test_multithread_server
    app = app(AWESOME + <<~'RUBY')
      ServerEngine.create(nil, MyWorker, { log: 'myserver.log', worker_type: 'thread', workers: 3 }).run
    RUBY
    app.eventually("three work") { app.read("myserver.log").scan("Awesome").size >= 3 }
    assert_equal 1, app.read("myserver.log").scan(/#(\d+)\]  INFO/).uniq.size
    app.stop
    3.times { |id| assert_match(/stopped #{id}/, app.read("myserver.log")) }
  end

  def test_multiprocess_tcp_server
    port = free_port
    app = app(<<~RUBY, wait: true)
      require 'panzer/serverengine'

      # Server module controls the parent process
      module MyServer
        def before_run
          @sock = TCPServer.new(config[:bind], config[:port])
        end

        attr_reader :sock
      end

      # Worker module controls child processes
      module MyWorker
        def run
          until @stop
            # you should use Cool.io or EventMachine actually
            c = server.sock.accept
            c.write "Awesome work!"
            c.close
          end
        end

        def stop
          @stop = true
        end
      end

      se = ServerEngine.create(MyServer, MyWorker, {
        daemonize: true,
        log: 'myserver.log',
        pid_path: 'myserver.pid',
        worker_type: 'process',
        workers: 4,
        bind: '0.0.0.0',
        port: #{port},
        # The workers of this example wait for one more client before they stop.
        worker_graceful_kill_timeout: 1,
      })
      se.run
    RUBY
    app.daemon("myserver.pid")
    4.times { assert_equal "Awesome work!", TCPSocket.new("127.0.0.1", port).read }
    earlier = app.workers
    app.signal("USR1")
    app.eventually("others serve") { (app.workers & earlier).empty? }
    assert_equal "Awesome work!", TCPSocket.new("127.0.0.1", port).read
  end

  def test_spawn_worker_with_commands_over_a_pipe
    app = app(<<~'RUBY')
      require 'panzer/serverengine'

      module MyWorker
        def spawn(process_manager)
          env = {
            'SERVER_ENGINE_CONFIG' => config.to_json
          }
          script = %[
            require 'panzer/serverengine'
            require 'json'

            conf = JSON.parse(ENV['SERVER_ENGINE_CONFIG'], symbolize_names: true)
            logger = ServerEngine::DaemonLogger.new(conf[:log] || STDOUT, conf)

            @stop = false
            command_pipe = STDIN.dup
            STDIN.reopen(File::NULL)
            Thread.new do
              until @stop
                case command_pipe.gets.chomp
                when "GRACEFUL_STOP"
                  @stop = true
                when "IMMEDIATE_STOP"
                  @stop = true
                when "GRACEFUL_RESTART", "IMMEDIATE_RESTART"
                  # do something...
                end
              end
            end

            until @stop
              logger.info 'Awesome work!'
              sleep 1
            end
            logger.info 'stopped by command'
          ]
          process_manager.spawn(env, "ruby", "-e", script)
        end
      end

      se = ServerEngine.create(nil, MyWorker, {
        worker_type: 'spawn',
        command_sender: 'pipe',
        log: 'myserver.log',
      })
      se.run
    RUBY
    app.wait_for(/Awesome work!/, "myserver.log")
    assert_equal 0, app.stop
    assert_match(/stopped by command/, app.read("myserver.log"))
  end

  def test_spawn_worker_with_signals
    app = app(<<~'RUBY')
      require 'panzer/serverengine'
      module MyWorker
        def spawn(process_manager)
          process_manager.spawn("ruby", "-e", <<~SCRIPT)
            %w[TERM USR1].each { |signal| trap(signal) { File.write(signal, ""); exit if signal == "TERM" } }
            File.write("begun", "")
            sleep
          SCRIPT
        end
      end
      ServerEngine.create(nil, MyWorker, { worker_type: 'spawn', log: 'x.log', worker_reload_signal: 'USR1' }).run
    RUBY
    app.eventually("it begins") { File.exist?(app.path("begun")) }
    app.signal("USR2")
    app.eventually("it is told to reload") { File.exist?(app.path("USR1")) }
    assert_equal 0, app.stop
    assert_path_exists app.path("TERM")
  end

  def test_logging
    app = app(<<~'RUBY')
      require 'panzer/serverengine'
      module MyServer; end
      module MyWorker
        def run
          logger.trace "not this"
          logger.debug "that"
          puts "from stdout"
          warn "from stderr"
          until @stop
            logger.info "x" * 1000
            sleep 0.001
          end
        end

        def stop
          @stop = true
        end
      end
      se = ServerEngine.create(MyServer, MyWorker, {
        log: 'myserver.log',
        log_level: 'debug',
        log_rotate_age: 5,
        log_rotate_size: 1*1024*1024 / 16,
        worker_type: 'process',
        workers: 2,
      })
      se.run
    RUBY
    app.eventually("it is rotated") { File.exist?(app.path("myserver.log.3")) }
    app.stop
    names = Dir.children(app.folder).grep(/myserver.log/)
    assert_operator names.size, :<=, 6
    sizes = names.map { |name| File.size(app.path(name)) }
    assert_operator sizes.max, :<, 80 * 1024
    refute_match(/not this/, app.all_output)
  end

  def test_stdout_and_stderr_go_to_the_log
    app = app(<<~'RUBY')
      require 'panzer/serverengine'
      module MyWorker
        def run
          puts "from stdout"
          warn "from stderr"
          sleep 0.1 until @stop
          puts "last words"
        end

        def stop
          @stop = true
        end
      end
      ServerEngine.create(nil, MyWorker, { log: 'myserver.log', log_level: 'trace' }).run
    RUBY
    app.wait_for(/^from stdout$/, "myserver.log")
    app.wait_for(/^from stderr$/, "myserver.log")
    app.stop
    assert_match(/^last words$/, app.read("myserver.log"))
  end

  # "Whole process will exit without error (exit code 0)".
  def test_supervisor_auto_restart
    app = app(<<~'RUBY')
      require 'panzer/serverengine'
      module MyWorker
        def run
          logger.info "begun"
          exit! File.read('code').to_i if File.exist?('code')
          sleep 0.05 until @stop
        end

        def stop
          @stop = true
        end
      end
      se = ServerEngine.create(nil, MyWorker, {
        worker_type: 'process',
        supervisor: true,  # enables supervisor process
        log: 'myserver.log',
        unrecoverable_exit_codes: [5, 6],
        stop_immediately_at_unrecoverable_exit: true,
      })
      se.run
    RUBY
    begun = ->(count) { app.eventually("begun #{count}") { app.read("myserver.log").scan(/#(\d+)\]  INFO.*begun/).flatten[count - 1] }.to_i }
    Process.kill("KILL", begun[1])
    second = begun[2]
    File.write(app.path("code"), "6")
    Process.kill("KILL", second)
    assert_equal 0, app.wait_exit
  end

  def test_live_restart
    app = app(AWESOME + <<~'RUBY')
      module Slow
        include MyWorker
        def stop
          logger.info "takes its time #{Process.pid}"
          Thread.new { sleep 0.05 until File.exist?('done'); @stop = true }
        end
      end
      ServerEngine.create(nil, Slow, { supervisor: true, enable_detach: true, log: 'myserver.log', worker_type: 'process' }).run
    RUBY
    app.wait_for(/Awesome/, "myserver.log")
    app.signal("INT")
    app.wait_for(/takes its time/, "myserver.log")
    app.eventually("both work") { app.read("myserver.log").scan(/#(\d+)\]  INFO.*Awesome/).uniq.size == 2 }
    File.write(app.path("done"), "")
    app.wait_for(/stopped 0/, "myserver.log")
    assert_equal 0, app.stop
  end

  def test_dynamic_config_reloading
    app = app(<<~'RUBY', files: { "config.yml" => "message: first\nsleep: 0.05\n" })
      require 'panzer/serverengine'

      module MyWorker
        def initialize
          reload
        end

        def reload
          @message = config[:message] || "Awesome work!"
          @sleep = config[:sleep] || 1
        end

        def run
          until @stop
            logger.info @message
            sleep @sleep
          end
        end

        def stop
          @stop = true
        end
      end

      se = ServerEngine.create(nil, MyWorker) do
        YAML.load_file("config.yml").transform_keys(&:to_sym).merge({
          log: 'myserver.log',
          worker_type: 'process',
        })
      end
      se.run
    RUBY
    app.wait_for(/first/, "myserver.log")
    File.write(app.path("config.yml"), "message: second\nsleep: 0.05\nworkers: 3\n")
    app.signal("USR2")
    app.wait_for(/second/, "myserver.log")
    app.eventually("there are three") { app.read("myserver.log").scan(/#(\d+)\]  INFO.*second/).uniq.size == 3 }
    # The mold knows it too: new workers have it.
    log = app.read("myserver.log")
    refute_match(/first/, log[log.index("second")..].lines.last(20).join)
    assert_equal 0, app.stop
  end

  def test_blocking_flag
    app = app(<<~'RUBY', files: { "config.yml" => "message: Awesome\n" })
      require 'panzer/serverengine'

      module MyWorker
        def initialize
          @stop_flag = ServerEngine::BlockingFlag.new
        end

        def run
          until @stop_flag.wait_for_set(1.0)  # or @stop_flag.set?
            logger.info @message
          end
          logger.info "woken"
        end

        def stop
          @stop_flag.set!
        end
      end

      config = "config.yml"
      se = ServerEngine.create(nil, MyWorker) do
        YAML.load_file(config).merge({
          log: 'myserver.log',
          worker_type: 'process'
        })
      end
      se.run
    RUBY
    app.wait_for(/INFO/, "myserver.log")
    assert_equal 0, app.stop
    assert_match(/woken/, app.read("myserver.log"))
  end

  def test_socket_manager
    port = free_port
    app = app(<<~RUBY, wait: true)
      require 'panzer/serverengine'

      module MyServer
        def before_run
          @socket_manager_path = ServerEngine::SocketManager::Server.generate_path
          @socket_manager_server = ServerEngine::SocketManager::Server.open(@socket_manager_path)
        end

        def after_run
          @socket_manager_server.close
        end

        attr_reader :socket_manager_path
      end

      module MyWorker
        def initialize
          @stop_flag = ServerEngine::BlockingFlag.new
          @socket_manager = ServerEngine::SocketManager::Client.new(server.socket_manager_path)
        end

        def run
          lsock = @socket_manager.listen_tcp('0.0.0.0', #{port})
          until @stop
            c = lsock.accept
            c.write "Awesome work!"
            c.close
          end
        end

        def stop
          @stop = true
        end
      end

      se = ServerEngine.create(MyServer, MyWorker, {
        daemonize: true,
        log: 'myserver.log',
        pid_path: 'myserver.pid',
        worker_type: 'process',
        workers: 4,
        bind: '0.0.0.0',
        port: 9071,
        # The workers of this example wait for one more client before they stop.
        worker_graceful_kill_timeout: 1,
      })
      se.run
    RUBY
    app.daemon("myserver.pid")
    4.times { assert_equal "Awesome work!", TCPSocket.new("127.0.0.1", port).read }
    earlier = app.workers
    app.signal("USR1")
    app.eventually("others serve") { (app.workers & earlier).empty? }
    assert_equal "Awesome work!", TCPSocket.new("127.0.0.1", port).read
  end

  HOOKS = <<~'RUBY'
    require 'panzer/serverengine'
    def note(text)
      File.write('notes', "#{text}\n", mode: 'a')
    end

    module MyServer
      def initialize
        note "server initialize #{config[:own]}"
      end

      %w[before_run after_run after_start].each { |name| define_method(name) { note "server #{name}" } }

      def reload_config
        note "server reload_config"
        super
      end

      def stop(stop_graceful)
        note "server stop #{stop_graceful}"
        super
      end
    end

    module MyWorker
      def initialize
        note "worker initialize #{worker_id} #{Panzer.mold?}"
      end

      def before_fork
        note "worker before_fork #{worker_id} #{Panzer.mold?}"
      end

      def after_start
        note "worker after_start #{worker_id} #{Panzer.mold?}"
      end

      def run
        note "worker run #{worker_id} #{config[:own]} #{$0}"
        sleep 0.05 until @stop
        # The mold gets TERM meanwhile.
        sleep 0.8
        note "worker end #{worker_id}"
      end

      def reload
        note "worker reload #{worker_id}"
      end

      def stop
        note "worker stop #{worker_id}"
        @stop = true
      end
    end
    ServerEngine.create(MyServer, MyWorker, { worker_type: 'process', supervisor: true, log: 'my.log', own: 'config',
                                              worker_process_name: 'worker %d', workers: 2 }).run
  RUBY

  def test_every_hook
    app = app(HOOKS)
    2.times { |id| app.wait_for(/^worker run #{id} config worker #{id}$/, "notes") }
    notes = app.read("notes")
    assert_equal ["server initialize config", "server after_start", "server before_run"],
                 notes.lines(chomp: true).grep(/^server [iab]/).first(3)
    2.times do |id|
      ["initialize #{id} true", "before_fork #{id} true", "after_start #{id} true"].each do |words|
        # The mold goes on beside its worker.
        app.wait_for(/^worker #{words}$/, "notes")
      end
    end
    app.signal("USR2")
    2.times { |id| app.wait_for(/^worker reload #{id}$/, "notes") }
    app.wait_for(/server reload_config/, "notes")
    assert_equal 0, app.stop
    notes = app.read("notes")
    2.times { |id| assert_includes notes, "worker stop #{id}" }
    assert_operator notes.index("server stop true"), :<, notes.index("worker end")
    assert_operator notes.rindex("worker end"), :<, notes.index("server after_run")
    assert_equal 1, notes.scan("after_run").size
  end

  def test_cont_dumps_the_threads
    app = app(AWESOME + "ServerEngine.create(nil, MyWorker, { log: 'my.log', worker_type: 'process' }).run")
    pid = app.wait_for(/#\d+\]  INFO.*Awesome/, "my.log")[/\d+/]
    path = "/tmp/sigdump-#{pid}.log"
    app.signal("CONT")
    app.eventually("it is there") { File.exist?(path) && File.read(path).include?("VmRSS") }
    assert_match(/Thread .*status=run/, File.read(path))
  ensure
    FileUtils.rm_f(path) if path
  end

  def test_a_worker_without_a_heartbeat_is_killed
    app = app(<<~'RUBY')
      require 'panzer/serverengine'
      require 'fiddle'
      module MyWorker
        def run
          logger.info "begun"
          Fiddle::Function.new(Fiddle::Handle::DEFAULT['sleep'], [Fiddle::TYPE_INT], Fiddle::TYPE_INT, need_gvl: true).call(1000)
        end
      end
      ServerEngine.create(nil, MyWorker, { log: 'my.log', worker_type: 'process', worker_heartbeat_interval: 0.2,
                                           worker_heartbeat_timeout: 1 }).run
    RUBY
    app.wait_for(/has sent no WATCHDOG=1 for 1s; aborting it/, "err")
    app.eventually("it is replaced") { app.read("my.log").scan("begun").size > 1 }
  end

  def test_another_timeout_of_the_heartbeat_holds_once_it_is_read
    app = app(<<~'RUBY', files: { "timeout" => "60" })
      require 'panzer/serverengine'
      require 'fiddle'
      module MyWorker
        def run
          logger.info "begun"
          sleep = Fiddle::Function.new(Fiddle::Handle::DEFAULT['sleep'], [Fiddle::TYPE_INT], Fiddle::TYPE_INT, need_gvl: true)
          Kernel.sleep 0.1 until @is_stuck
          sleep.call(1000)
        end

        def reload
          # The next signs of life say how long to wait for the one after.
          Thread.new { Kernel.sleep 1; @is_stuck = true }
        end
      end
      ServerEngine.create(nil, MyWorker) do
        { log: 'my.log', worker_type: 'process', worker_heartbeat_interval: 0.1, worker_heartbeat_timeout: File.read('timeout').to_f }
      end.run
    RUBY
    app.wait_for(/begun/, "my.log")
    File.write(app.path("timeout"), "1.5")
    app.signal("USR2")
    app.wait_for(/has sent no WATCHDOG=1 for 1\.5s; aborting it/, "err")
  end

  def test_a_key_that_does_nothing_says_so_once
    app = app(AWESOME + <<~'RUBY')
      ServerEngine.create(nil, MyWorker, { log: 'my.log', worker_type: 'process', workers: 2, server_detach_wait: 5,
                                           start_worker_delay: 0.01, start_worker_delay_rand: 0.2 }).run
    RUBY
    app.wait_for(/Awesome/, "my.log")
    app.stop
    refute_match(/start_worker_delay_rand/, app.read("my.log"))
    assert_equal 1, app.read("my.log").scan("server_detach_wait does nothing under panzer").size
  end

  def test_restarting_workers_of_the_same_server
    app = app(AWESOME + <<~'RUBY')
      File.write('loads', '.', mode: 'a')
      ServerEngine.create(nil, MyWorker, { log: 'my.log', worker_type: 'process', workers: 2, restart_server_process: false }).run
    RUBY
    awesome = -> { app.read("my.log").scan(/#(\d+)\]  INFO.*Awesome/).uniq.size }
    app.eventually("both work") { awesome.call == 2 }
    mold, loads = app.workers.first, app.read("loads")
    app.signal("USR1")
    app.eventually("two others work") { awesome.call == 4 }
    assert_equal 2, app.read("my.log").scan(/stopped \d/).size
    app.signal("HUP")
    app.eventually("two others work") { awesome.call == 6 }
    assert_equal 2, app.read("my.log").scan(/stopped \d/).size
    assert_equal [mold, loads], [app.workers.first, app.read("loads")]
    assert_equal 0, app.stop
  end

  # ServerEngine has no option for it: panzer's holds, and the workers end as at any restart.
  def test_workers_are_replaced_after_a_while
    app = app(AWESOME + <<~'RUBY', env: { "PANZER_MAX_LIFETIME" => "1s", "PANZER_HEALTHY_AFTER" => "100ms" })
      ServerEngine.create(nil, MyWorker, { log: 'my.log', worker_type: 'process', workers: 2 }).run
    RUBY
    app.eventually("two have stopped") { app.read("my.log").scan(/stopped \d/).size >= 2 }
    app.wait_for(/has taken the place of/, "err")
    app.stop
  end

  def test_failing_to_daemonize_has_its_own_code
    app = app(AWESOME + <<~'RUBY', wait: true)
      ServerEngine.create(nil, MyWorker, { daemonize: true, log: 'my.log', chuser: 'nobody-of-this-name',
                                           daemonize_error_exit_code: 77 }).run
    RUBY
    assert_equal 77, app.code
  end

  def test_quit_is_immediate_and_hup_restarts_at_once
    app = app(<<~'RUBY')
      require 'panzer/serverengine'
      module MyWorker
        def run
          logger.info "begun"
          sleep
        end

        def stop
          logger.info "asked to stop"
        end
      end
      ServerEngine.create(nil, MyWorker, { log: 'my.log', worker_type: 'process' }).run
    RUBY
    app.wait_for(/begun/, "my.log")
    first = app.workers
    app.signal("HUP")
    app.eventually("another one serves") { app.read("my.log").scan("begun").size == 2 && (app.workers & first).empty? }
    assert_equal 0, app.stop("QUIT")
    refute_match(/asked to stop/, app.read("my.log"))
  end
end
