# Load once, fork many: run a Crystal program's workers under panzer (Linux).
#
# ```
# require "panzer"
#
# Panzer.run(workers: 8, listen: 8000) do |worker|
#   # ...
# end
# ```
#
# Run without panzer, the program finds panzer and runs under it. Under `panzer --preload` it is the mold: it is loaded once, and
# forks each worker. README.md has more; panzer-mold(7) has the protocol.
require "log"
require "socket"

lib LibPanzer
  F_DUPFD_CLOEXEC  =       1030
  MSG_DONTWAIT     =       0x40
  MSG_NOSIGNAL     =     0x4000
  MSG_CMSG_CLOEXEC = 0x40000000
  PR_SET_PDEATHSIG =          1
  SOL_SOCKET       =          1
  SCM_RIGHTS       =          1

  struct Part
    base : Void*
    length : LibC::SizeT
  end

  struct Message
    name : Void*
    name_length : LibC::UInt
    parts : Part*
    part_count : LibC::SizeT
    control : Void*
    control_length : LibC::SizeT
    flags : LibC::Int
  end

  struct Header
    length : LibC::SizeT
    level : LibC::Int
    type : LibC::Int
  end

  fun recvmsg(fd : LibC::Int, message : Message*, flags : LibC::Int) : LibC::SSizeT
  fun prctl(option : LibC::Int, ...) : LibC::Int
  fun setpgid(pid : LibC::PidT, group : LibC::PidT) : LibC::Int
  fun getppid : LibC::PidT
  fun usleep(microseconds : LibC::UInt) : LibC::Int
end

module Panzer
  VERSION = "0.2.0"

  HOW_TO_INSTALL = <<-TEXT
    panzer: panzer is not installed: it is not in PATH, and the variable PANZER does not name it.
    Install it with `cargo install --path .` in the folder of its source, or set PANZER to the path of the binary.
    TEXT

  # One worker, as its own program sees it. A class that includes it has a `run`, and may have `before_fork` (called in the mold, before
  # each fork), `after_start` (in the worker, before `run`), `stop` (on TERM), `reload` (on USR2) and `become_mold` (with --refork: in a
  # worker whose `run` has returned, and which forks the others from now on).
  module Worker
    abstract def run

    # The worker's number, from 0 on. A respawned worker has the number of the one that ended.
    def index : Int32
      ENV["PANZER_WORKER_ID"]?.try(&.to_i?) || 0
    end

    # Whether the worker was asked to stop. A worker that reads this, or has `stop`, is not ended by TERM.
    def stopping? : Bool
      Panzer.catch_term { }
      Panzer.stopping?
    end

    # Says that this worker can serve. Returns whether anybody listens.
    def ready : Bool
      notify("READY=1")
    end

    # Says that this worker is not stuck, for the watchdog.
    def alive : Bool
      notify("WATCHDOG=1")
    end

    # Says how many requests this worker has served so far, for --max-requests and --refork. Now and then is enough. What was counted
    # before it was forked is left out.
    def served(requests : Int) : Bool
      notify("X_PANZER_REQUESTS=#{Panzer.count(requests.to_i64)}")
    end

    # Sends a message as sd_notify(3) does, such as STATUS=importing.
    def notify(text : String) : Bool
      Panzer.notify(text)
    end

    # Writes lines to stdout, which panzer passes on.
    def logger : Logger
      Logger::INSTANCE
    end
  end

  # What `logger` of the first seed did: one line for each message.
  class Logger
    INSTANCE = new

    {% for level in %w(debug info warn error fatal) %}
      def {{level.id}}(message) : Nil
        STDOUT << {{level.upcase}} << " worker " << (ENV["PANZER_WORKER_ID"]? || "-") << ": " << message << '\n'
        STDOUT.flush
      end

      def {{level.id}}(&) : Nil
        {{level.id}}(yield)
      end
    {% end %}
  end

  # A worker that is a block.
  class BlockWorker
    include Worker

    def initialize(@block : Worker ->)
    end

    def run
      @block.call(self)
    end
  end

  # The first seed's own shape.
  module Monitor
    def self.run(worker : Worker, *, count = nil, **options) : NoReturn
      Panzer.run(worker, **options.merge(workers: count || options[:workers]?))
    end
  end

  # Runs workers of *worker*. Does not return.
  #
  # The options are panzer's, with _ for - in their names: workers, listen, ready_timeout, ... They hold if the program is run without
  # panzer. The user's own flags and PANZER_* variables win over them.
  def self.run(worker : Worker, **options) : NoReturn
    if mold = @@mold
      mold.serve(worker)
      exit 0
    elsif ENV.has_key?("PANZER_WORKER_ID")
      exit work(worker)
    else
      Deployment.execute_panzer(options)
    end
  end

  # The same for a block, which gets the worker.
  def self.run(**options, &block : Worker ->) : NoReturn
    run(BlockWorker.new(block), **options)
  end

  # The sockets that panzer passes, in the order of `listen`. The same objects serve the mold and each worker.
  class_getter listeners : Array(Socket::Server) do
    listener_numbers.map { |number| listener(number) }
  end

  # :nodoc:
  def self.listener_numbers : Array(Int32)
    Array(Int32).new(ENV["LISTEN_FDS"]?.try(&.to_i?) || 0) { |index| 3 + index }
  end

  private def self.listener(number) : Socket::Server
    address = LibC::Sockaddr.new
    length = LibC::SocklenT.new(sizeof(LibC::Sockaddr))
    LibC.getsockname(number, pointerof(address), pointerof(length))
    return UNIXServer.new(fd: number).as(Socket::Server) if address.sa_family == LibC::AF_UNIX
    TCPServer.new(fd: number).as(Socket::Server)
  end

  @@stopping = false
  @@catches_term = false
  @@mold : Mold? = Mold.take

  # :nodoc:
  def self.stopping? : Bool
    @@stopping
  end

  # :nodoc:
  #
  # Unless the program has its own handler for TERM, and no `stop`.
  def self.catch_term(has_stop = false, &stop : ->) : Nil
    return if @@catches_term
    @@catches_term = true
    LibC.sigaction(Signal::TERM.value, nil, out now)
    return unless has_stop || now.sa_sigaction.pointer.null?
    Signal::TERM.trap do
      @@stopping = true
      stop.call
    end
  end

  # :nodoc:
  #
  # In the worker: everything from its first hook to the end of `run`. Returns the exit code.
  def self.work(worker) : Int32
    catch_term(true) { worker.stop } if worker.responds_to?(:stop)
    Signal::USR2.trap { worker.reload } if worker.responds_to?(:reload)
    worker.after_start if worker.responds_to?(:after_start)
    worker.run
    0
  rescue error
    error.inspect_with_backtrace(STDERR)
    1
  end

  # :nodoc:
  #
  # In a worker that becomes the mold, which has its signals back already.
  def self.forget_work : Nil
    @@stopping = @@catches_term = false
    @@served_before = @@served
    {"PANZER_WORKER_ID", "LISTEN_PID", "WATCHDOG_PID"}.each { |name| ENV.delete(name) }
    @@listeners.try &.each(&.close)
    @@listeners = nil
    # The program may have closed them, and each worker gets them anew.
    null = LibC.open("/dev/null", LibC::O_RDWR | LibC::O_CLOEXEC)
    listener_numbers.each { |number| LibC.dup2(null, number) }
    LibC.close(null)
  end

  @@served = 0_i64
  @@served_before = 0_i64

  # :nodoc:
  def self.count(requests : Int64) : Int64
    @@served_before = 0_i64 if requests < @@served_before
    @@served = requests
    requests - @@served_before
  end

  # :nodoc:
  def self.notify(text : String) : Bool
    path = ENV["NOTIFY_SOCKET"]?
    return false unless path
    path = "\0#{path[1..]}" if path.starts_with?('@')
    address = LibC::SockaddrUn.new
    return false if path.bytesize >= address.sun_path.size
    address.sun_family = LibC::AF_UNIX
    path.to_slice.each_with_index { |byte, i| address.sun_path[i] = byte }
    @@notifier = LibC.socket(LibC::AF_UNIX, LibC::SOCK_DGRAM | LibC::SOCK_CLOEXEC, 0) if @@notifier < 0
    length = LibC::SocklenT.new(2 + path.bytesize)
    target = pointerof(address).as(LibC::Sockaddr*)
    LibC.sendto(@@notifier, text.to_unsafe.as(Void*), text.bytesize, LibPanzer::MSG_NOSIGNAL, target, length) >= 0
  end

  @@notifier = -1

  # This process as a mold.
  # :nodoc:
  class Mold
    MAX_MESSAGE_BYTES = 1024
    MAX_DESCRIPTORS   =  253
    # Above the numbers at which descriptors of workers are to stand.
    HIGH = 512

    # The mold, if panzer has started this process as one.
    def self.take : Mold?
      number, version = ENV.delete("PANZER_MOLD_FD"), ENV.delete("PANZER_MOLD_VERSION")
      number.try { |number| new(number.to_i, version) }
    end

    # As far away from the numbers at which descriptors of workers are to stand as RLIMIT_NOFILE allows. Closes the first one.
    def self.raise_descriptor(descriptor : Int32) : Int32
      lowest, raised = HIGH, -1
      while raised < 0 && lowest > 3
        raised = LibC.fcntl(descriptor, LibPanzer::F_DUPFD_CLOEXEC, lowest)
        lowest //= 2
      end
      LibC.close(descriptor)
      raised
    end

    def initialize(number : Int32, @version : String?)
      @monitor = LibPanzer.getppid
      @socket = Mold.raise_descriptor(number)
      @refork = -1
      @handlers = {} of ::Signal => LibC::SigactionHandlerT?
      @mask = LibC::SigsetT.new
      @is_ready = false
      @has_told_of_threads = false
      at_exit do |_, error|
        send("FAILED #{error.class}: #{error.message}") if error && !@is_ready
      end
    end

    def send(text : String) : Bool
      bytes = text.split.join(' ').to_slice
      # If the monitor is gone, the next `receive` says so.
      LibC.send(@socket, bytes.to_unsafe.as(Void*), {bytes.size, MAX_MESSAGE_BYTES}.min, LibPanzer::MSG_NOSIGNAL) >= 0
    end

    # Forks a worker whenever the monitor asks for one, until it says STOP or is gone.
    def serve(worker) : Nil
      unless @version == "1"
        why = "this client speaks version 1 of the mold protocol, and panzer version #{@version}"
        send("FAILED #{why}")
        abort "panzer: #{why}"
      end
      Signal.each { |signal| @handlers[signal] = handler_of(signal) }
      LibC.pthread_sigmask(LibC::SIG_SETMASK, nil, pointerof(@mask))
      be_willing
      while order = receive
        text, descriptors = order
        words = text.split(' ')
        return if words[0] == "STOP"
        if words[0] == "FORK" && fork(worker, words[1], words[2], words[3..], descriptors)
          become_mold(worker)
        else
          descriptors.each { |descriptor| LibC.close(descriptor) }
        end
        # Whoever has ended meanwhile is read from the pipe of the signals, which would be full one day.
        Fiber.yield
      end
    end

    private def be_willing : Nil
      GC.collect
      @is_ready = true
      send("READY refork")
    end

    private def handler_of(signal)
      LibC.sigaction(signal.value, nil, out action)
      action.sa_sigaction
    end

    # In a worker whose `run` has returned. Its frames are those of the mold that has forked it.
    private def become_mold(worker) : Nil
      @socket, @refork, @is_ready = @refork, -1, false
      @handlers.each do |signal, handler|
        next if handler == handler_of(signal)
        handler.try(&.pointer.address) == LibC::SIG_IGN.pointer.address ? signal.ignore : signal.reset
      end
      LibC.pthread_sigmask(LibC::SIG_SETMASK, pointerof(@mask), nil)
      Panzer.forget_work
      worker.become_mold if worker.responds_to?(:become_mold)
      be_willing
    rescue error
      send("FAILED #{error.class}: #{error.message}")
      error.inspect_with_backtrace(STDERR)
      exit 1
    end

    # Whether panzer wants this worker as its mold. It says so before it tells the worker to stop.
    private def wanted? : Bool
      bytes = Bytes.new(MAX_MESSAGE_BYTES)
      length = LibC.recv(@refork, bytes.to_unsafe.as(Void*), bytes.size, LibPanzer::MSG_DONTWAIT)
      length > 0 && bytes[0, length] == "MOLD".to_slice
    end

    # Returns in the mold; and, with true, in a worker that is wanted as the mold.
    private def fork(worker, ticket, slot, places, descriptors) : Bool
      between = begin
        unless places.size == descriptors.size
          raise "#{descriptors.size} descriptors came for #{places.size} places"
        end
        worker.before_fork if worker.responds_to?(:before_fork)
        tell_of_threads
        STDOUT.flush
        STDERR.flush
        fork_twice
      rescue error
        send("UNBORN #{ticket} #{error.message}")
        nil
      end
      return false unless between
      be_worker(worker, between, ticket, slot, places, descriptors)
      true
    end

    # The process between ends at once, so that the worker falls to the monitor. Returns its pid in the worker, and nil in the mold.
    private def fork_twice : Int32?
      all = uninitialized LibC::SigsetT
      before = uninitialized LibC::SigsetT
      LibC.sigfillset(pointerof(all))
      # The process between shares the mold's pipe for signals: it must not write to it.
      LibC.pthread_sigmask(LibC::SIG_SETMASK, pointerof(all), pointerof(before))
      pid = LibC.fork
      error = Errno.value
      if pid == 0
        between = LibC.getpid
        begin
          if Process.fork.nil?
            LibC.pthread_sigmask(LibC::SIG_SETMASK, pointerof(before), nil)
            return between
          end
        rescue error
          LibC._exit(Errno.value.value)
        end
        LibC._exit(0)
      end
      status = 0
      while pid > 0 && LibC.waitpid(pid, pointerof(status), 0) < 0 && Errno.value == Errno::EINTR
      end
      LibC.pthread_sigmask(LibC::SIG_SETMASK, pointerof(before), nil)
      error = Errno.new(status >> 8) if pid > 0
      raise error.message if pid < 0 || status != 0
    end

    # Returns only if the worker is wanted as the mold.
    private def be_worker(worker, between, ticket, slot, places, descriptors) : Nil
      settle(between)
      place(places, descriptors)
      ENV["PANZER_WORKER_ID"] = slot
      ENV["LISTEN_PID"] = Process.pid.to_s if ENV.has_key?("LISTEN_FDS")
      ENV["WATCHDOG_PID"] = Process.pid.to_s if ENV.has_key?("WATCHDOG_USEC")
      # Otherwise the monitor has another mold by now, and does not know this worker.
      LibC._exit(0) unless send("BORN #{ticket}")
      LibC.close(@socket)
      code = Panzer.work(worker)
      exit code unless code == 0 && wanted?
    end

    # Waits until the monitor is the parent, and asks for TERM when it dies.
    private def settle(between) : Nil
      while LibPanzer.getppid == between
        LibPanzer.usleep(100)
      end
      LibPanzer.prctl(LibPanzer::PR_SET_PDEATHSIG, LibC::ULong.new(Signal::TERM.value))
      LibC._exit(0) unless LibPanzer.getppid == @monitor
      LibPanzer.setpgid(0, 0)
    end

    # Puts the descriptors where they are to stand. They are raised first, so that none overwrites another.
    private def place(places, descriptors) : Nil
      top = (places.compact_map(&.to_i?).max? || 0) + 1
      raised = descriptors.map { |descriptor| LibC.fcntl(descriptor, LibPanzer::F_DUPFD_CLOEXEC, top) }
      descriptors.each { |descriptor| LibC.close(descriptor) }
      raised.zip(places) do |descriptor, place|
        next @refork = Mold.raise_descriptor(descriptor) if place == "refork"
        LibC._exit(1) if LibC.dup2(descriptor, place.to_i) < 0
        LibC.close(descriptor)
      end
    end

    # The next message, and the descriptors that came with it; nil at the end. Waits in the kernel: fibers of the mold do not run.
    private def receive : {String, Array(Int32)}?
      bytes = Bytes.new(MAX_MESSAGE_BYTES)
      control = Bytes.new(sizeof(LibPanzer::Header) + 8 + 4 * MAX_DESCRIPTORS)
      part = LibPanzer::Part.new(base: bytes.to_unsafe.as(Void*), length: bytes.size)
      message = LibPanzer::Message.new
      loop do
        message = LibPanzer::Message.new(parts: pointerof(part), part_count: 1)
        message.control = control.to_unsafe.as(Void*)
        message.control_length = control.size
        length = LibPanzer.recvmsg(@socket, pointerof(message), LibPanzer::MSG_CMSG_CLOEXEC)
        next if length < 0 && Errno.value == Errno::EINTR
        return if length <= 0
        return {String.new(bytes[0, length]), descriptors_of(message)}
      end
    end

    # One header at most: the monitor sends all descriptors together.
    private def descriptors_of(message) : Array(Int32)
      return [] of Int32 if message.control_length < sizeof(LibPanzer::Header)
      header = message.control.as(LibPanzer::Header*).value
      return [] of Int32 unless header.level == LibPanzer::SOL_SOCKET && header.type == LibPanzer::SCM_RIGHTS
      numbers = (message.control.as(UInt8*) + sizeof(LibPanzer::Header)).as(Int32*)
      count = (header.length - sizeof(LibPanzer::Header)) // sizeof(Int32)
      Array(Int32).new(count.to_i) { |index| numbers[index] }
    end

    # Workers have only the thread that forks them. Says so once. The garbage collector's own threads are not the program's.
    private def tell_of_threads : Nil
      return if @has_told_of_threads
      own = Dir.children("/proc/self/task").count { |task| !File.read("/proc/self/task/#{task}/comm").starts_with?("GC-") }
      return if own == 1
      @has_told_of_threads = true
      STDERR.puts "panzer: warning: #{own - 1} more threads run in the mold. Workers do not have them, and locks that they hold stay \
        locked there. Start threads in after_start or run."
    end
  end

  # A program that is run without panzer runs under it.
  # :nodoc:
  module Deployment
    # Replaces this process by panzer, with this program as its mold.
    def self.execute_panzer(options) : NoReturn
      panzer = ENV["PANZER"]?.presence || Process.find_executable("panzer")
      give_up 127, HOW_TO_INSTALL unless panzer
      arguments = ["--preload"]
      options.each { |name, value| arguments.concat(flags(name.to_s.tr("_", "-"), value)) }
      arguments << "--" << PROGRAM_NAME
      arguments.concat(ARGV)
      STDOUT.flush
      STDERR.flush
      begin
        Process.exec(panzer, arguments)
      rescue error
        give_up 126, "panzer: #{panzer} cannot be executed: #{error.message}. Set PANZER to the path of panzer's binary."
      end
    end

    # Without what was registered for the end: the program has not run.
    private def self.give_up(code, text) : NoReturn
      STDERR.puts text
      STDERR.flush
      LibC._exit(code)
    end

    # One option of the code as flags: those of the user win, and so does a variable.
    private def self.flags(name, value) : Array(String)
      return [] of String if ENV.has_key?("PANZER_#{name.upcase.tr("-", "_")}")
      flag = "--#{name}"
      given = given_by_user(flag, value.is_a?(Bool))
      return given unless given.empty?
      case value
      when Nil, false then [] of String
      when true       then [flag]
      when Hash       then value.flat_map { |key, each| [flag, "#{key}=#{each}"] }
      when Enumerable then value.flat_map { |each| [flag, text(each)] }
      else                 [flag, text(value)]
      end
    end

    # A number is a number, or a duration in seconds.
    private def self.text(value) : String
      value = value.total_seconds if value.is_a?(Time::Span)
      return value.to_s unless value.is_a?(Float)
      value == value.to_i ? value.to_i.to_s : "#{(value * 1000).round.to_i}ms"
    end

    # The occurrences of a flag among the program's own arguments, up to --.
    private def self.given_by_user(flag, is_switch) : Array(String)
      found = [] of String
      words = ARGV.each
      while (word = words.next).is_a?(String) && word != "--"
        if word == flag
          found << flag
          found << words.next.to_s unless is_switch
        elsif word.starts_with?("#{flag}=")
          found << flag << word[flag.size + 1..]
        end
      end
      found
    end
  end
end
