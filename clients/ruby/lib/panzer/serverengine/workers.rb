# frozen_string_literal: true

module ServerEngine
  # What Panzer.run gets: one of these in the mold, and a copy of it in each of panzer's workers.
  class Workers
    # The kind for the configured worker_type.
    def self.of(server)
      kinds = { "embedded" => EmbeddedWorkers, "thread" => ThreadWorkers, "process" => ProcessWorkers, "spawn" => SpawnWorkers }
      kinds.fetch((server.config[:worker_type] || "embedded").to_s).new(server)
    end

    def initialize(server)
      @server = server
      @reloads, @reload = IO.pipe
      @stopping = false
      follow_reloads if Panzer.mold?
    end

    # In the mold: until no worker has the pipe any more. A mold that does not end at once gets TERM, too.
    def wait_for_end
      trap("TERM", "IGNORE")
      @reload.close
      @follower.join
    end

    # In the worker, before `run`.
    def after_start(_handle)
      @reloads.close
      $stdin.reopen(File::NULL)
      hook_output
      SignalThread.new { |signals| trap_all(signals) }
    end

    # The server, with its threads, is in the mold that was loaded.
    def become_mold
      exit
    end

    def run(handle)
      work(handle.index)
    rescue StandardError, NotImplementedError => e
      logger.error("Worker #{handle.index} failed: #{e.full_message(highlight: false)}")
      exit(1)
    ensure
      release_output
    end

    private

    def config
      @server.config
    end

    def logger
      @server.logger
    end

    # A worker that is told to reload tells the mold, so that the workers which it forks from then on know as well.
    def follow_reloads
      @follower = Thread.new do
        while @reloads.wait_readable && @reloads.read_nonblock(4096, exception: false)
          # All of the workers are told at the same time.
          sleep(0.1)
          @reloads.read_nonblock(4096, exception: false)
          begin
            @server.reload
          rescue StandardError => e
            logger.error("cannot reload: #{e.full_message(highlight: false)}")
          end
        end
      end
      @follower.thread_variable_set(:fork_safe, true)
      @follower.name = "reloads"
    end

    def trap_all(signals)
      [*%w[TERM INT USR1], *gentle_signals].each { |signal| signals.trap(signal) { stop_again_and_again } }
      (%w[QUIT HUP] - gentle_signals).each { |signal| signals.trap(signal, "DEFAULT") }
      signals.trap("USR2") do
        @reload.write_nonblock(".", exception: false)
        @server.reload
        each_worker(&:reload)
      end
      # Panzer continues a worker that it has told to stop: that asks for no dump.
      signals.trap("CONT") { Sigdump.dump unless @stopping || config[:disable_sigdump] }
    end

    # Signals that end a worker at once elsewhere.
    def gentle_signals
      %w[HUP]
    end

    # A worker may have missed the first call.
    def stop_again_and_again
      return if @stopping

      @stopping = true
      each_worker(&:stop)
      Thread.new do
        pause = config[:worker_graceful_kill_interval] || 15
        loop do
          sleep(pause)
          each_worker(&:stop)
          pause += config[:worker_graceful_kill_interval_increment] || 10
        end
      end
    end

    def each_worker
      workers.each do |worker|
        yield(worker)
      rescue StandardError => e
        ServerEngine.dump_uncaught_error(e)
      end
    end

    # Lines of stdout and stderr go to the log, unless the log is there itself.
    def hook_output
      target = config[:log]
      hooked = []
      hooked << $stdout if config.fetch(:log_stdout, true) && target != "-"
      hooked << $stderr if config.fetch(:log_stderr, true) && target
      hooked.reject! { |io| logger_writes_to?(io) }
      @hooked = hooked.map { |io| [io, io.dup, follow(io)] }
    end

    def logger_writes_to?(io)
      device = logger.instance_variable_get(:@logdev)
      device = device.dev if device.respond_to?(:dev)
      device == io
    end

    def follow(io)
      reader, writer = IO.pipe
      io.reopen(writer)
      io.sync = true
      writer.close
      Thread.new do
        while (line = reader.gets)
          logger << line
        end
      end
    end

    # What was written is in the log before the end.
    def release_output
      @hooked&.each do |io, original, thread|
        io.reopen(original)
        thread.join(1)
      end
    end
  end

  # One worker, in a process of its own here as well.
  class EmbeddedWorkers < Workers
    private

    def workers
      [@worker].compact
    end

    def work(index)
      @worker = @server.create_worker(index)
      @worker.run
    end
  end

  # A process with a thread for each worker.
  class ThreadWorkers < Workers
    private

    def workers
      @threads.to_h.values.map(&:first)
    end

    def work(_index)
      @threads = {}
      until @stopping && @threads.each_value.none? { |_, thread| thread.alive? }
        keep_workers unless @stopping
        # Nothing says that a thread has ended, but a look.
        sleep(0.1)
      end
    end

    def keep_workers
      @threads.delete_if { |id, (_, thread)| id >= count && !thread.alive? }
      @threads.each { |id, (worker, thread)| worker.stop if id >= count && thread.alive? }
      count.times do |id|
        _, thread = @threads[id]
        next if thread&.alive? || @stopping

        sleep(config[:restart_worker_interval] || 0) if thread
        @threads[id] = start_thread(id)
        sleep(config[:start_worker_delay] || 0)
      end
    end

    def count
      config[:workers] || 1
    end

    def start_thread(id)
      worker = @server.create_worker(id)
      worker.before_fork
      [worker, Thread.new { worker.run }]
    ensure
      worker&.after_start
    end
  end

  # A process for each worker.
  class ProcessWorkers < Workers
    # In the mold.
    def before_fork(handle)
      prepare(handle.index)
    end

    # In the mold, after the fork.
    def forked
      @worker.after_start
    end

    def after_start(handle)
      # Without a mold nobody has prepared it.
      unless @worker
        prepare(handle.index)
        @worker.after_start
      end
      $0 = format(config[:worker_process_name], handle.index) if config[:worker_process_name]
      super
      beat(handle)
    end

    private

    def gentle_signals
      []
    end

    def workers
      [@worker]
    end

    def prepare(index)
      @worker = @server.create_worker(index)
      @worker.before_fork
    end

    # Panzer knows the timeout of the start; a configuration that was read again may have another.
    def beat(handle)
      timeout = config[:worker_heartbeat_timeout]
      Thread.new do
        loop do
          sleep(config[:worker_heartbeat_interval] || 1)
          known, timeout = timeout, config[:worker_heartbeat_timeout]
          handle.notify("WATCHDOG_USEC=#{(timeout * 1_000_000).round}") if timeout && timeout != known
          handle.alive!
        end
      end
    end

    def work(_index)
      @worker.run
    end
  end

  # A process for each worker, and another one that the worker starts.
  class SpawnWorkers < Workers
    private

    def workers
      []
    end

    def trap_all(signals)
      %w[TERM USR1].each { |signal| signals.trap(signal) { stop("GRACEFUL_STOP", "TERM", :worker_graceful_kill) } }
      %w[QUIT HUP].each { |signal| signals.trap(signal) { stop("IMMEDIATE_STOP", "QUIT", :worker_immediate_kill) } }
      signals.trap("USR2") do
        @reload.write_nonblock(".", exception: false)
        @server.reload
        @child&.tell("RELOAD", config[:worker_reload_signal])
      end
      signals.trap("CONT") { Sigdump.dump unless @stopping || config[:disable_sigdump] }
    end

    def stop(command, signal, keys)
      @stopping = true
      @told&.kill
      @told = Thread.new do
        pause = config[:"#{keys}_interval"] || 10
        loop do
          @child&.tell(command, signal)
          sleep(pause)
          pause += config[:"#{keys}_interval_increment"] || 10
        end
      end
    end

    def work(index)
      worker = @server.create_worker(index)
      worker.before_fork
      begin
        @child = worker.spawn(ProcessManager.new(config[:command_sender]))
      ensure
        worker.after_start
      end
      status = @child.join
      logger.info("Worker #{index} finished with #{status}")
      exit(status.exitstatus || 128 + status.termsig)
    end
  end
end
