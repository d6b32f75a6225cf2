# frozen_string_literal: true

require "logger"
require "panzer"

# Preforker's interface on top of panzer: `require "panzer/preforker"` in the place of `require "preforker"`.
class Preforker
  attr_reader :timeout, :app_name, :logger

  # Options beyond Preforker's own are panzer's.
  def initialize(options = {}, &worker_block)
    @options = options.transform_keys(&:to_sym)
    @app_name = @options.delete(:app_name) || "Preforker"
    @timeout = @options.delete(:timeout) || 5
    log_path = "#{@app_name.downcase}.log"
    @logger = @options.delete(:logger) || Logger.new(log_path)
    @stdout_path = @options.delete(:stdout_path) || log_path
    @stderr_path = @options.delete(:stderr_path) || log_path
    @pid_path = @options.delete(:pid_path) || "./#{@app_name.downcase}.pid"
    @worker_block = worker_block || proc {}
  end

  # Runs until a signal ends it. Does not return.
  def run
    become_master if Panzer.started?
    Panzer.run(Worker.new(self, @worker_block), **panzer_options)
  end

  # Runs in the background. Returns in the process that was started by hand.
  def start
    return run if Panzer.started?

    puts("Starting server")
    release_listeners
    # What panzer says goes where the master's own words go.
    deployment = Panzer::Deployment.new(panzer_options.merge(daemonize: true))
    unless deployment.run(err: [@stderr_path, "a"]).success?
      warn("Master failed to start, check stderr log for details")
      exit!(1)
    end
    puts("Server started successfuly")
  end

  private

  def panzer_options
    patience = "#{(@timeout * 1000).round}ms"
    {
      workers: 10,
      name: @app_name.downcase.gsub(/[^a-z0-9._-]+/, "-"),
      pid: @pid_path,
      signals: :preforker,
      stop: "QUIT/#{patience}/TERM/1s/KILL",
      watchdog: patience,
      delay: "10ms",
      delay_max: "1s"
    }.merge(@options)
  end

  def become_master
    $0 = "#{@app_name} Master"
    $stdin.reopen(File::NULL)
    { $stdout => @stdout_path, $stderr => @stderr_path }.each do |io, path|
      io.reopen(path, "a")
      io.sync = true
    end
    @logger.info("Master started") if Panzer.mold?
  end

  # The mold opens them anew; this process, which has opened them too, serves nobody.
  def release_listeners
    ObjectSpace.each_object(BasicSocket) do |socket|
      socket.close if !socket.closed? && socket.getsockopt(:SOCKET, :ACCEPTCONN).bool
    end
  end

  # One worker; also the `master` that the block gets.
  class Worker
    include Panzer::Worker

    attr_reader :logger

    def initialize(master, block)
      @master, @block, @logger = master, block, master.logger
      @is_wanted, @next_sign = true, 0
    end

    # Whether the worker is to go on. Panzer kills a worker that does not ask within the timeout. A loop may ask often, and
    # so not each question is a sign of life.
    def wants_me_alive?
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      if now >= @next_sign
        @next_sign = now + (@master.timeout / 10.0)
        alive!
      end
      @is_wanted
    end

    def after_start
      @is_wanted = true
      %w[TERM INT].each { |signal| trap(signal) { exit!(0) } }
      @quits = Thread::Queue.new
      trap("QUIT") do
        @is_wanted = false
        @quits << true
      end
      # A handler of a signal may not write to a log.
      @quitting = Thread.new { log("Exiting gracefully") if @quits.pop }
    end

    def run
      log("Created")
      @block.call(self) if wants_me_alive?
      @quits.close
      @quitting.join
    end

    private

    def log(message)
      $0 = "#{@master.app_name} Child #{Process.pid}: #{message}"
      @logger.info($0)
    end
  end
  private_constant :Worker
end
