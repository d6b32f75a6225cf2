# frozen_string_literal: true

require "fileutils"
require "minitest/autorun"
require "socket"
require "tmpdir"

# A program of the tests in a folder of its own, which runs under the panzer that PANZER names.
class App
  LIB = File.expand_path("../lib", __dir__)
  LIMIT = 60

  attr_reader :folder, :pid

  def initialize(code, args: [], env: {}, files: {}, wait: false)
    @folder = Dir.mktmpdir("panzer-ruby-")
    { "app.rb" => code, **files }.each do |name, text|
      File.write(path(name), text)
      File.chmod(0o755, path(name))
    end
    @env = { "RUNTIME_DIRECTORY" => @folder, "PWD" => @folder, "PATH" => "#{@folder}:#{ENV.fetch("PATH")}", "RUBYOPT" => nil,
             "RUBYLIB" => LIB }.merge(env)
    @pid = spawn(@env, RbConfig.ruby, "-W", "app.rb", *args, chdir: @folder, in: File::NULL,
                 out: [path("out"), "a"], err: [path("err"), "a"])
    @code = wait_exit if wait
  end

  # The exit code of the process that was started.
  attr_reader :code

  def path(name)
    File.join(@folder, name)
  end

  def read(name = "out")
    File.exist?(path(name)) ? File.read(path(name)) : ""
  end

  def eventually(what)
    ends = Process.clock_gettime(Process::CLOCK_MONOTONIC) + LIMIT
    loop do
      found = yield
      return found if found
      raise "not within #{LIMIT} s: #{what}\n#{all_output}" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > ends

      sleep(0.02)
    end
  end

  def wait_for(pattern, name = "out")
    eventually("#{pattern.inspect} in #{name}") { read(name)[pattern] }
  end

  def all_output
    Dir.children(@folder).sort.filter_map do |name|
      file = path(name)
      "--- #{name}\n#{File.read(file)}" if File.file?(file) && name != "app.rb" && !name.end_with?(".sock")
    rescue SystemCallError
      next
    end.join("\n")
  end

  # Where panzer runs in the background, its pid stands in a file.
  def daemon(name)
    @pid = eventually("#{name} is written") { read(name)[/\A\d+\n?\z/] }.to_i
    @is_daemon = true
    self
  end

  def signal(name)
    Process.kill(name, @pid)
  end

  # The pids of the workers, of all generations.
  def workers
    monitors = children(@pid).select { |pid| title(pid).include?("panzer: monitor") || comm(pid).start_with?("panzer") }
    monitors.flat_map { |monitor| children(monitor) }
  end

  def children(pid)
    File.read("/proc/#{pid}/task/#{pid}/children").split.map(&:to_i)
  rescue SystemCallError
    []
  end

  def title(pid)
    File.read("/proc/#{pid}/cmdline").tr("\0", " ").strip
  rescue SystemCallError
    ""
  end

  def comm(pid)
    File.read("/proc/#{pid}/comm")
  rescue SystemCallError
    ""
  end

  def wait_exit
    eventually("#{@pid} ends") { ended? }
    @status&.exitstatus
  end

  def alive?(pid)
    File.read("/proc/#{pid}/stat")[/\) (\w)/, 1] != "Z"
  rescue SystemCallError
    false
  end

  def stop(name = "TERM")
    signal(name)
    wait_exit
  end

  # Ends what is left, and removes the folder.
  def close
    # Not every preset has a meaning for QUIT, nor does every worker end by TERM.
    %w[TERM QUIT].each do |name|
      next if ended?

      Process.kill(name, @pid)
      ends = Process.clock_gettime(Process::CLOCK_MONOTONIC) + 3
      sleep(0.02) until ended? || Process.clock_gettime(Process::CLOCK_MONOTONIC) > ends
    end
    family(@pid).each { |pid| kill(pid) } unless ended?
    @status || @is_daemon || Process.wait(@pid)
  rescue SystemCallError
    nil
  ensure
    FileUtils.rm_rf(@folder)
  end

  private

  def ended?
    return !alive?(@pid) if @is_daemon

    @status ||= Process.wait2(@pid, Process::WNOHANG)&.last
  end

  def family(pid)
    [pid, *children(pid).flat_map { |child| family(child) }]
  end

  def kill(pid)
    Process.kill("KILL", pid)
  rescue SystemCallError
    nil
  end
end

class PanzerTest < Minitest::Test
  parallelize_me!

  def app(*arguments, **settings)
    (@apps ||= []) << App.new(*arguments, **settings)
    @apps.last
  end

  def teardown
    puts(@apps.map(&:all_output)) if !passed? && @apps
  ensure
    @apps&.each(&:close)
  end

  def free_port
    server = TCPServer.new("127.0.0.1", 0)
    server.addr[1]
  ensure
    server.close
  end
end
