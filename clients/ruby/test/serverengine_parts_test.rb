# frozen_string_literal: true

require_relative "support"
require "stringio"
$LOAD_PATH.unshift(App::LIB)
require "panzer/serverengine"

# ServerEngine's utilities by themselves.
class ServerEnginePartsTest < PanzerTest
  def test_a_socket_manager_hands_one_socket_to_all
    path = File.join(Dir.mktmpdir, "sockets")
    server = ServerEngine::SocketManager::Server.open(path)
    client = server.new_client
    port = free_port
    sockets = [client.listen_tcp("127.0.0.1", port), client.listen(:tcp, "127.0.0.1", port), client.listen_udp("127.0.0.1", port)]
    assert_equal [port] * 3, sockets.map { |socket| socket.addr[1] }
    assert_equal [TCPServer, TCPServer, UDPSocket], sockets.map(&:class)
    assert_equal [1, 1], [server.tcp_sockets.size, server.udp_sockets.size]
    error = assert_raises(Errno::EADDRNOTAVAIL) { client.listen_tcp("192.0.2.1", port) }
    assert_match(/192\.0\.2\.1/, error.message)
    assert_raises(ArgumentError) { client.listen(:sctp, "127.0.0.1", port) }
  ensure
    server&.close
    refute_path_exists path
  end

  def test_a_socket_manager_takes_over_from_another
    path = File.join(Dir.mktmpdir, "sockets")
    first = ServerEngine::SocketManager::Server.open(path)
    port = free_port
    first.new_client.listen_tcp("127.0.0.1", port)
    second = ServerEngine::SocketManager::Server.share_sockets_with_another_server(path)
    assert_equal ["127.0.0.1:#{port}"], second.tcp_sockets.keys
    assert_equal port, second.new_client.listen_tcp("127.0.0.1", port).addr[1]
  end

  def test_who_lacks_the_token_gets_nothing
    path = File.join(Dir.mktmpdir, "sockets")
    server = ServerEngine::SocketManager::Server.open(path)
    UNIXSocket.open(path) do |peer|
      data = JSON.generate({ token: "guessed", proto: "tcp", bind: "127.0.0.1", port: 1 })
      peer.write([data.bytesize].pack("N") + data)
      assert_nil peer.read(1)
    end
  ensure
    server&.close
  end

  def test_levels_of_the_logger
    out = StringIO.new
    logger = ServerEngine::DaemonLogger.new(out, { log_level: "trace" })
    logger.trace("finest")
    logger.debug { "by a block" }
    logger.level = :warn
    logger.info("not this")
    logger.error("that")
    assert_match(/TRACE -- : finest\n.*DEBUG -- : by a block\n.*ERROR -- : that\n\z/m, out.string)
    refute_match(/not this/, out.string)
    assert_raises(ArgumentError) { logger.level = "loud" }
    refute logger.trace?
  end

  def test_the_log_is_opened_anew_where_it_was_moved
    folder = Dir.mktmpdir
    path = File.join(folder, "my.log")
    logger = ServerEngine::DaemonLogger.new(path, {})
    logger.info("first")
    File.rename(path, "#{path}.old")
    logger.reopen!
    logger.info("second")
    assert_match(/first/, File.read("#{path}.old"))
    assert_match(/second/, File.read(path))
  end

  def test_a_blocking_flag_wakes_who_waits
    flag = ServerEngine::BlockingFlag.new
    waiting = Thread.new { flag.wait_for_set(60) }
    sleep(0.01) until waiting.status == "sleep"
    assert flag.set!
    assert waiting.value
    refute flag.set!
    refute flag.wait_for_reset(0.01)
    assert flag.reset!
    refute flag.set?
  end

  def test_configuration_as_options
    options = ServerEngine::Options.new(
      worker_type: "process", workers: 3, chuser: "www", chgroup: "www", chumask: 0o27, pid_path: "my.pid", daemonize: true,
      start_worker_delay: 0.5, restart_worker_interval: 3, worker_graceful_kill_timeout: 10, worker_immediate_kill_timeout: -1,
      unrecoverable_exit_codes: [5, 6], stop_immediately_at_unrecoverable_exit: true, supervisor: true, disable_reload: true
    )
    expected = {
      workers: 3, user: "www", group: "www", umask: 0o27, pid: "my.pid", daemonize: true, start_delay: "500ms", delay: "3000ms",
      delay_max: "3000ms", stop: "TERM/10000ms/QUIT/366d/KILL", final_exit_codes: "5,6=0", final_exit_stop: true,
      signals: :serverengine, on: { USR2: "ignore", CONT: "pass", WINCH: "reread" }
    }
    all = { **options.dynamic, **options.send(:fixed) }
    assert_equal expected, all.slice(*expected.keys)
  end
end
