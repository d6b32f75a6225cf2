# frozen_string_literal: true

require "fcntl"
require "socket"

# Load once, fork many: runs a Ruby program's workers under panzer.
#
#     require "panzer"
#
#     Panzer.run(workers: 8, listen: 8000) do |worker|
#       ...
#     end
#
# Run without panzer, the program finds panzer and runs under it. Under `panzer --preload` it is the mold: it is loaded
# once, and forks each worker. README.md has more; panzer-mold(7) has the protocol.
module Panzer
  VERSION = "0.2.0"

  # Runs workers of `worker`, which is a block, an object with `run`, or its class. Does not return.
  #
  # The object may also define `before_fork` and `forked` (in the mold, before and after each fork), `after_start` (in the
  # worker, before `run`), `stop` (on TERM), `reload` (on USR2) and `become_mold` (with --refork: in a worker whose `run` has
  # returned, and which forks the others from now on). Each of them may take the Worker as its argument.
  #
  # The options are panzer's, with _ for - in their names: workers, listen, ready_timeout, ... They hold if the program
  # is run without panzer. The user's own flags and PANZER_* variables win over them.
  def self.run(worker = nil, **options, &block)
    program = Program.new(worker.is_a?(Class) ? worker.new : worker || block)
    Deployment.new(options).execute unless started?
    mold? ? MOLD.serve(program) : program.work
    exit
  end

  # Whether panzer has started this process, or forked it.
  def self.started?
    mold? || ENV.key?("PANZER_WORKER_ID")
  end

  # Whether this process is the mold.
  def self.mold?
    MOLD.serves?
  end

  # The pid of panzer's main process, which takes the signals. In the mold or a worker: it is the monitor's parent.
  def self.main_pid
    File.read("/proc/#{Process.ppid}/stat")[/\) \w (\d+)/, 1].to_i
  end

  # The sockets that panzer passes, in the order of `listen`. The same objects serve the mold and each worker.
  def self.listeners
    @listeners ||= Array.new(ENV.fetch("LISTEN_FDS", "0").to_i) do |index|
      socket = Socket.for_fd(3 + index)
      socket.autoclose = false
      address = socket.local_address
      kind = address.socktype == Socket::SOCK_DGRAM ? UDPSocket : TCPServer
      kind = UNIXServer if address.unix? && kind == TCPServer
      kind.for_fd(3 + index).tap { |listener| listener.autoclose = false }
    end
  end

  # The program may have closed them, and each worker gets them anew.
  def self.forget_listeners
    null = File.open(File::NULL)
    ENV.fetch("LISTEN_FDS", "0").to_i.times { |index| LibC.dup2(null.fileno, 3 + index) }
    null.close
    @listeners = nil
  end
  private_class_method :forget_listeners

  # One worker, as its own program sees it. A class with `run` may include this module.
  module Worker
    # The worker's number, from 0 on. A respawned worker has the number of the one that ended.
    def index
      STATE.index || ENV.fetch("PANZER_WORKER_ID", "0").to_i
    end

    # Whether the worker was asked to stop. A worker that asks this, or defines `stop`, is not ended by TERM.
    def stopping?
      STATE.asked = true
      STATE.stopping
    end

    # Says that this worker can serve. Returns whether anybody listens.
    def ready!
      notify("READY=1")
    end

    # Says that this worker is not stuck, for the watchdog.
    def alive!
      notify("WATCHDOG=1")
    end

    # Says how many requests this worker has served so far, for --max-requests and --refork. Now and then is enough. What
    # was counted before it was forked is left out.
    def served(requests)
      STATE.served_before = 0 if requests < STATE.served_before
      STATE.served = requests
      notify("X_PANZER_REQUESTS=#{requests - STATE.served_before}")
    end

    # Sends a message as sd_notify(3) does, such as STATUS=importing.
    def notify(text)
      path = ENV.fetch("NOTIFY_SOCKET", "")
      return false if path.empty?

      STATE.notifier ||= Socket.new(:UNIX, :DGRAM)
      STATE.notifier.send(text, 0, Socket.pack_sockaddr_un(path.sub(/\A@/, "\0")))
      true
    rescue SystemCallError
      false
    end
  end

  # What this process knows about itself as a worker.
  STATE = Struct.new(:index, :stopping, :asked, :notifier, :served, :served_before).new(nil, false, false, nil, 0, 0)
  private_constant :STATE

  # The user's program: its `run` and its hooks.
  class Program
    HOOKS = %i[before_fork forked after_start run stop reload become_mold].freeze

    def initialize(given)
      @handle = given.is_a?(Worker) ? given : Object.new.extend(Worker)
      @hooks = HOOKS.to_h { |name| [name, given.respond_to?(name) ? given.method(name) : nil] }.compact
      @hooks[:run] = given if given.is_a?(Proc)
      @signals, @earlier = Thread::Queue.new, {}
      raise ArgumentError, "Panzer.run takes a block, or an object that has a method named run" unless @hooks[:run]
    end

    def call(name)
      hook = @hooks[name] or return
      hook.arity.zero? ? hook.call : hook.call(@handle)
    end

    # In the worker: everything from its first hook to its end.
    def work
      on("TERM", :stop, only_default: !@hooks[:stop]) { STATE.stopping = true }
      on("USR2", :reload) if @hooks[:reload]
      start_hooks if @hooks[:stop] || @hooks[:reload]
      call(:after_start)
      call(:run)
      finish
    end

    private

    # A hook runs in a thread of its own: a handler of a signal may not lock a mutex, and so may not write to a log.
    def start_hooks
      @thread = Thread.new do
        while (name = @signals.pop)
          begin
            call(name)
          rescue StandardError => e
            warn("panzer: #{name} failed: #{e.full_message(highlight: false)}")
          end
        end
      end
      @thread.name = "panzer's hooks"
    end

    # What was asked before the end of `run` is done.
    def finish
      @signals << nil
      @thread&.join
      @earlier.each { |signal, handler| trap(signal, handler || "DEFAULT") }
      @signals, @thread = Thread::Queue.new, nil
    end

    def on(signal, hook, only_default: false)
      earlier = trap(signal) do
        yield if block_given?
        next @signals << hook if @hooks[hook]

        # The program does not know of this signal: it ends by it, as any program does.
        raise SignalException, signal unless STATE.asked
      end
      @earlier[signal] = earlier
      trap(signal, earlier) if only_default && !%w[DEFAULT SYSTEM_DEFAULT].include?(earlier)
    end
  end

  # The few calls of libc that Ruby has no method for.
  module LibC
    PR_SET_PDEATHSIG = 1

    def self.load
      require "fiddle"
      int, long = Fiddle::TYPE_INT, Fiddle::TYPE_LONG
      @prctl = Fiddle::Function.new(Fiddle::Handle::DEFAULT["prctl"], [int, long, long, long, long], int)
      @dup2 = Fiddle::Function.new(Fiddle::Handle::DEFAULT["dup2"], [int, int], int)
    end

    def self.die_with_parent
      check(@prctl.call(PR_SET_PDEATHSIG, Signal.list.fetch("TERM"), 0, 0, 0), "prctl")
    end

    def self.dup2(from, to)
      check(@dup2.call(from, to), "dup2")
    end

    def self.check(result, call)
      raise SystemCallError.new(call, Fiddle.last_error) if result.negative?
    end
    private_class_method :check
  end

  # This process as a mold, if panzer has started it as one.
  class Mold
    MAX_MESSAGE_BYTES = 1024
    MAX_CONTROL_BYTES = 2048
    # Descriptors of workers are to stand at low numbers.
    FIRST_OWN_DESCRIPTOR = 100
    # Linux's; Fcntl does not have it.
    F_DUPFD_CLOEXEC = 1030
    FORK_PATIENCE = 5
    # The frames of a mold lie below those of a mold that was its worker.
    MAX_REFORKS = 200

    def initialize
      number, @version = ENV.delete("PANZER_MOLD_FD"), ENV.delete("PANZER_MOLD_VERSION")
      return unless number

      @socket = raise_socket(number.to_i)
      @monitor, @pid, @reforks = Process.ppid, Process.pid, 0
      LibC.load
      at_exit { tell_of_failure($!) if $! && serves? && Process.pid == @pid }
    end

    def serves?
      !@socket.nil?
    end

    # Forks a worker whenever the monitor asks for one, until it says STOP or is gone.
    def serve(program)
      unless @version == "1"
        abort("panzer: this client speaks version 1 of the mold protocol, and panzer version #{@version}")
      end
      settle
      @at_start ||= dispositions
      @is_ready = true
      say(@reforks < MAX_REFORKS ? "READY refork" : "READY")
      while (words, descriptors = receive) && words[0] != "STOP"
        fork_worker(program, words[1], words[2].to_i, words.drop(3), descriptors) if words[0] == "FORK"
        descriptors.each { |io| io.close unless io.closed? }
      end
    end

    private

    def say(text)
      line = text.scrub.split.join(" ").byteslice(0, MAX_MESSAGE_BYTES).scrub("")
      @socket.send(line, 0)
    rescue SystemCallError
      nil # The monitor is gone, which the next message says as well.
    end

    def receive
      data, _, _, *controls = @socket.recvmsg(MAX_MESSAGE_BYTES, 0, MAX_CONTROL_BYTES, scm_rights: true)
      return if data.nil? || data.empty?

      [data.split, controls.flat_map { |control| control.unix_rights || [] }]
    rescue Errno::ECONNRESET
      nil
    end

    def tell_of_failure(error)
      return if @is_ready || error.is_a?(SignalException)
      return if error.is_a?(SystemExit) && (error.success? || error.message == "exit")

      kind = error.is_a?(SystemExit) ? "" : "#{error.class}: "
      say("FAILED #{kind}#{error.message}")
    end

    # Before the first fork: what is garbage, or not written yet, is not to be in each worker.
    def settle
      ObjectSpace.each_object(File) { |file| file.flush unless file.closed? || !writes?(file) }
      return Process.warmup if Process.respond_to?(:warmup)

      # Otherwise each worker would note in the string itself what characters it has.
      ObjectSpace.each_object(String, &:valid_encoding?)
      # An object that has survived three collections is old, and is not looked at by most of them.
      3.times { GC.start }
      GC.compact if GC.respond_to?(:compact)
    rescue NotImplementedError
      nil # This platform cannot compact.
    end

    def writes?(file)
      file.fcntl(Fcntl::F_GETFL) & Fcntl::O_ACCMODE != Fcntl::O_RDONLY
    end

    def fork_worker(program, ticket, slot, places, descriptors)
      if places.size != descriptors.size
        raise ArgumentError, "#{descriptors.size} descriptors came for #{places.size} places"
      end
      STATE.index = slot
      program.call(:before_fork)
      tell_of_threads
      [$stdout, $stderr].each(&:flush)
      fork_twice { be_worker(program, ticket, slot, places, descriptors) }
      program.call(:forked)
    rescue StandardError => e
      say("UNBORN #{ticket} #{e.is_a?(SystemCallError) ? e.message : "#{e.class}: #{e.message}"}")
    end

    # A forked block ends its process without unwinding the frames of the mold, so no `ensure` of the program runs twice.
    def fork_twice(&block)
      between = patient_fork do
        # The process between ends at once, so that the worker falls to the monitor. Its at_exit handlers are not run.
        code = Errno::EIO::Errno
        begin
          @between = Process.pid
          patient_fork(&block)
          code = 0
        rescue SystemCallError => e
          code = e.errno
        ensure
          exit!(code)
        end
      end
      status = wait_for(between)
      return if status.nil? || status.success?

      raise SystemCallError.new(nil, status.exitstatus) if status.exited?

      raise "the process between was killed by signal #{status.termsig}"
    end

    # Ruby tries a fork for which there are too many processes again and again, for ever.
    def patient_fork(&block)
      forking = Thread.current
      watch = Thread.new do
        sleep(FORK_PATIENCE)
        forking.raise(Errno::EAGAIN, "fork")
      end
      watch.thread_variable_set(:fork_safe, true)
      fork(&block)
    ensure
      watch.kill.join
    end

    def wait_for(pid)
      Process.wait2(pid).last
    rescue Errno::ECHILD
      nil # The program ignores SIGCHLD, so the kernel has reaped it.
    end

    def be_worker(program, ticket, slot, places, descriptors)
      follow_monitor
      place(places, descriptors)
      ENV["PANZER_WORKER_ID"] = slot.to_s
      ENV["LISTEN_PID"] = Process.pid.to_s if ENV.key?("LISTEN_FDS")
      ENV["WATCHDOG_PID"] = Process.pid.to_s if ENV.key?("WATCHDOG_USEC")
      Random.srand
      # Otherwise the monitor has another mold by now, and does not know this worker.
      say("BORN #{ticket}") or exit!(0)
      @socket.close
      @socket = nil
      program.work
      become_mold(program) if wanted_as_mold?
    end

    # Panzer says so before it tells this worker to stop.
    def wanted_as_mold?
      @refork && @refork.recv_nonblock(MAX_MESSAGE_BYTES, exception: false) == "MOLD"
    end

    # In a worker whose `run` has returned.
    def become_mold(program)
      @socket, @refork = @refork, nil
      @pid, @is_ready, @reforks = Process.pid, false, @reforks + 1
      STATE.index, STATE.stopping, STATE.asked, STATE.served_before = nil, false, false, STATE.served
      %w[PANZER_WORKER_ID LISTEN_PID WATCHDOG_PID].each { |name| ENV.delete(name) }
      take_signals_back
      Panzer.send(:forget_listeners)
      program.call(:become_mold)
      serve(program)
    end

    # The signals that are ignored and that are caught, as masks.
    def dispositions
      File.read("/proc/self/status").scan(/^Sig(?:Ign|Cgt):\s*(\h+)/).map { |mask,| mask.hex }
    end

    # What the program has done about signals as a worker.
    def take_signals_back
      (ignored, caught), (_, now) = @at_start, dispositions
      (1..31).each do |signal|
        bit = 1 << (signal - 1)
        trap(signal, (ignored & bit).zero? ? "DEFAULT" : "IGNORE") unless (now & ~caught & bit).zero?
      end
    end

    # Waits until the monitor is the parent, and asks to be told of its death.
    def follow_monitor
      pause = 0.0002
      while Process.ppid == @between
        sleep(pause)
        pause = [2 * pause, 0.01].min
      end
      LibC.die_with_parent
      exit!(0) if Process.ppid != @monitor
      Process.setpgid(0, 0)
    end

    # Moves it away from the numbers at which descriptors of workers are to stand, as far as RLIMIT_NOFILE allows.
    def raise_socket(number)
      given = Socket.for_fd(number)
      lowest = [FIRST_OWN_DESCRIPTOR, Process.getrlimit(:NOFILE).first / 2].min
      Socket.for_fd(given.fcntl(F_DUPFD_CLOEXEC, lowest)).tap { given.close }
    end

    # Puts the descriptors where they are to stand. They are raised first, so that none overwrites another.
    def place(places, descriptors)
      top = [0, *places.map(&:to_i)].max + 1
      raised = descriptors.map { |io| io.fcntl(F_DUPFD_CLOEXEC, top) }
      descriptors.each(&:close)
      raised.zip(places) do |from, to|
        next @refork = raise_socket(from) if to == "refork"

        LibC.dup2(from, to.to_i)
        IO.for_fd(from).close
      end
    end

    # Workers have only the thread that forks them. Says so once.
    def tell_of_threads
      return if @has_told_of_threads

      # Puma's mark for a thread that may be missing in a child; and Timeout starts its own anew.
      others = Thread.list.reject do |thread|
        thread == Thread.current || thread.thread_variable_get(:fork_safe) || thread.name.to_s.start_with?("Timeout")
      end
      return if others.empty?

      @has_told_of_threads = true
      names = others.map { |thread| thread.name || thread.inspect }.join(", ")
      warn("panzer: warning: #{others.size} more threads run in the mold (#{names}). Workers do not have them, and " \
           "locks that they hold stay locked there. Start threads in after_start or run.")
    end
  end

  # Panzer with this program as its mold.
  class Deployment
    HOW_TO_INSTALL = <<~TEXT
      panzer: panzer is not installed: it is not in PATH, and the variable PANZER does not name it.
      Install it with `cargo install --path .` in the folder of its source, or set PANZER to the path of the binary.
    TEXT
    # Ruby reads them when it starts. By itself it lets a fifth of the heap be free before it collects garbage, and so each
    # worker writes to that much memory of its own.
    GC_SETTINGS = { "RUBY_GC_HEAP_FREE_SLOTS_MIN_RATIO" => "0.05", "RUBY_GC_HEAP_FREE_SLOTS_GOAL_RATIO" => "0.08" }.freeze
    # Read when this file is loaded: a program may set its title later, which overwrites it.
    COMMAND_LINE = File.binread("/proc/self/cmdline").split("\0").map { |word| word.force_encoding(Encoding::UTF_8) }
    SCRIPT = $PROGRAM_NAME.dup.freeze

    def initialize(options)
      @options = options.transform_keys { |key| key.to_s.tr("_", "-") }
    end

    # Replaces this process by panzer.
    def execute
      exec({ **GC_SETTINGS, **ENV }, *command)
    rescue SystemCallError => e
      fail_with(126, "panzer: #{panzer} cannot be executed: #{e.message}. Set PANZER to the path of panzer's binary.")
    end

    # Runs panzer beside this process, until it ends; with daemonize, until the workers are ready. Its `output` as for spawn.
    def run(**output)
      Process.wait2(spawn({ **GC_SETTINGS, **ENV }, *command, **output)).last
    rescue SystemCallError => e
      fail_with(126, "panzer: #{panzer} cannot be executed: #{e.message}. Set PANZER to the path of panzer's binary.")
    end

    # The options that this panzer has, by its own words, without their dashes. Empty if it does not say.
    def known
      @known ||= IO.popen([panzer, "--help"], err: File::NULL, &:read).scan(/^\s+(?:-\w, )?--([a-z][a-z-]*)/).flatten
    rescue SystemCallError
      @known = []
    end

    private

    def command
      check unless @options.empty?
      [$stdout, $stderr].each(&:flush)
      options = { "name" => nil, **@options }
      options["name"] ||= own_name
      words = options.flat_map { |name, value| flags(name, value) }
      [[panzer, panzer], "--preload", *words, "--", RbConfig.ruby, *own_arguments]
    end

    def panzer
      @panzer ||= find || fail_with(127, HOW_TO_INSTALL)
    end

    def find
      named = ENV.fetch("PANZER", "")
      return named unless named.empty?

      folders = ENV.fetch("PATH", "").split(File::PATH_SEPARATOR)
      folders.map { |folder| File.join(folder, "panzer") }.find { |path| File.file?(path) && File.executable?(path) }
    end

    def fail_with(code, text)
      $stderr.puts(text)
      [$stdout, $stderr].each(&:flush)
      exit!(code)
    end

    def check
      return unless known.include?("workers")

      unknown = @options.keys.find { |name| !known.include?(name) } or return
      near = defined?(DidYouMean) ? DidYouMean::SpellChecker.new(dictionary: known).correct(unknown).first : nil
      hint = near ? "did you mean #{near.tr("-", "_")}?" : "`panzer --help` lists them"
      raise ArgumentError, "panzer has no option named #{unknown.tr("-", "_")}; #{hint}"
    end

    # An instance is named after its program, which is not the interpreter.
    def own_name
      name = File.basename(SCRIPT, ".*").gsub(/[^\w.@-]+/, "-").sub(/\A[.-]+/, "")[0, 64]
      name unless name.empty?
    end

    # What follows the interpreter, so that its own flags stay: ruby -Ilib app.rb --fast.
    def own_arguments
      words = COMMAND_LINE.drop(1)
      return words if words.include?(SCRIPT) || %w[-e -].include?(SCRIPT)

      [File.expand_path(SCRIPT), *ARGV]
    end

    # One option of the code as flags: those of the user win, and so does a variable.
    def flags(name, value)
      return [] if ENV.key?("PANZER_#{name.tr("-", "_").upcase}")

      given = given_by_user("--#{name}", [true, false].include?(value))
      return given unless given.empty?
      return [] if value.nil? || value == false
      return ["--#{name}"] if value == true

      value = value.map { |key, each| "#{key}=#{text(each)}" } if value.is_a?(Hash)
      (value.is_a?(Array) ? value : [value]).flat_map { |each| ["--#{name}", text(each, name)] }
    end

    # The occurrences of a flag among the program's own arguments, up to --.
    def given_by_user(flag, is_switch)
      found = []
      words = ARGV.take_while { |word| word != "--" }
      until words.empty?
        word = words.shift
        found.push(*(is_switch ? [flag] : [flag, words.shift.to_s])) if word == flag
        found.push(flag, word.delete_prefix("#{flag}=")) if word.start_with?("#{flag}=")
      end
      found
    end

    # A number is a number, or a duration in seconds.
    def text(value, name = nil)
      case value
      when Integer then name == "umask" ? format("%03o", value) : value.to_s
      when Numeric then value == value.to_i ? value.to_i.to_s : "#{(value * 1000).round}ms"
      when Range then "#{value.begin}-#{value.max}"
      when Symbol then value.to_s.tr("_", "-")
      else value.respond_to?(:to_path) ? value.to_path : value.to_s
      end
    end
  end

  MOLD = Mold.new
  private_constant :MOLD, :Program, :LibC, :Mold
end
