# frozen_string_literal: true

require "ipaddr"
require "json"
require "securerandom"
require "socket"
require "time"

module ServerEngine
  # Listening sockets that worker processes ask for while they run. The server opens each once, and hands it to all.
  module SocketManager
    # What does not bring it is not answered. A spawned worker has it by its environment.
    INTERNAL_TOKEN = ENV["SERVERENGINE_SOCKETMANAGER_INTERNAL_TOKEN"] || SecureRandom.hex

    CLASSES = { "tcp" => TCPServer, "udp" => UDPSocket, "unix" => UNIXServer }.freeze

    def self.send(peer, message)
      data = JSON.generate({ token: INTERNAL_TOKEN, **message })
      peer.write([data.bytesize].pack("N") + data)
    end

    # The next message, or nil at the end.
    def self.receive(peer)
      head = peer.read(4) or return
      message = JSON.parse(peer.read(head.unpack1("N")), symbolize_names: true)
      message if message[:token] == INTERNAL_TOKEN
    end

    # In a worker.
    class Client
      def initialize(path)
        @path = path
      end

      def listen(proto, bind, port)
        raise ArgumentError, "unknown protocol: #{proto}" unless %i[tcp udp].include?(proto)

        UNIXSocket.open(@path) do |peer|
          SocketManager.send(peer, { proto: proto, bind: bind, port: port })
          answer = SocketManager.receive(peer) or raise Errno::ECONNRESET, "the socket manager at #{@path}"
          raise SystemCallError.new("#{bind}:#{port}", answer[:errno]) if answer[:errno]
          raise answer[:error] if answer[:error]

          peer.recv_io(CLASSES.fetch(proto.to_s))
        end
      end

      def listen_tcp(bind, port)
        listen(:tcp, bind, port)
      end

      def listen_udp(bind, port)
        listen(:udp, bind, port)
      end
    end

    # In the server.
    class Server
      attr_reader :path, :tcp_sockets, :udp_sockets

      def self.generate_path
        folder = ENV["SERVERENGINE_SOCKETMANAGER_SOCK_DIR"] || "/tmp"
        File.join(folder, "SERVERENGINE_SOCKETMANAGER_#{Time.now.utc.iso8601}_#{Process.pid}")
      end

      def self.open(path = generate_path)
        new(path || generate_path)
      end

      # A manager that has all sockets of another, and takes over its path.
      def self.share_sockets_with_another_server(path)
        new(path, start: false).tap(&:share_sockets_with_another_server)
      end

      def initialize(path, start: true)
        @tcp_sockets, @udp_sockets = {}, {}
        @mutex = Mutex.new
        @path = File.expand_path(path)
        self.start if start
      end

      def new_client
        Client.new(@path)
      end

      def start
        @server ||= protected_from_others { UNIXServer.new(@path) }
        @thread = Thread.new { serve }
        # A worker needs it not: it asks the server's.
        @thread.thread_variable_set(:fork_safe, true)
        nil
      end

      def close
        [@tcp_sockets, @udp_sockets].each { |sockets| sockets.each_value(&:close).clear }
        @server.close unless @server.closed?
        @thread.join
        File.unlink(@path)
      rescue Errno::ENOENT
        nil
      end

      def share_sockets_with_another_server
        UNIXSocket.open(@path) do |peer|
          SocketManager.send(peer, { share: true })
          answer = SocketManager.receive(peer)
          answer.fetch(:sockets).each do |proto, key|
            sockets_of(proto)[key] = peer.recv_io(CLASSES.fetch(proto))
          end
          @server = peer.recv_io(UNIXServer)
        end
        start
      end

      private

      def serve
        while (peer = @server.accept)
          Thread.new(peer) { |one| answer(one) }.thread_variable_set(:fork_safe, true)
        end
      rescue IOError, SystemCallError => e
        ServerEngine.dump_uncaught_error(e) unless @server.closed?
      end

      def answer(peer)
        while (message = SocketManager.receive(peer))
          message[:share] ? share(peer) : hand_out(peer, **message.slice(:proto, :bind, :port))
        end
      rescue IOError, SystemCallError, JSON::ParserError
        nil # It is gone, or no client.
      ensure
        peer.close
      end

      def hand_out(peer, proto:, bind:, port:)
        socket = listen(proto, bind, port)
      rescue SystemCallError => e
        SocketManager.send(peer, { errno: e.errno })
      rescue StandardError => e
        SocketManager.send(peer, { error: e.message })
      else
        SocketManager.send(peer, {})
        peer.send_io(socket)
      end

      def share(peer)
        all = %w[tcp udp].flat_map { |proto| sockets_of(proto).map { |key, socket| [proto, key, socket] } }
        SocketManager.send(peer, { sockets: all.map { |proto, key, _| [proto, key] } })
        all.each { |_, _, socket| peer.send_io(socket) }
        peer.send_io(@server)
      end

      def sockets_of(proto)
        { "tcp" => @tcp_sockets, "udp" => @udp_sockets }.fetch(proto)
      end

      def listen(proto, bind, port)
        address = IPAddr.new(IPSocket.getaddress(bind))
        key = "#{address.ipv6? ? "[#{address}]" : address}:#{port}"
        @mutex.synchronize { sockets_of(proto)[key] ||= open_socket(proto, address.to_s, port) }
      end

      def open_socket(proto, address, port)
        return as(UDPSocket, Addrinfo.udp(address, port).bind) if proto == "udp"
        return as(TCPServer, Addrinfo.tcp(address, port).listen(Socket::SOMAXCONN)) unless reuses_port?

        info = Addrinfo.tcp(address, port)
        socket = Socket.new(info.afamily, :STREAM)
        socket.ipv6only! if info.ipv6?
        %i[REUSEPORT REUSEADDR].each { |option| socket.setsockopt(:SOCKET, option, true) }
        socket.bind(info)
        socket.listen(Socket::SOMAXCONN)
        as(TCPServer, socket)
      end

      def reuses_port?
        ENV["SERVERENGINE_USE_SOCKET_REUSEPORT"] == "1"
      end

      def as(kind, socket)
        socket.autoclose = false
        kind.for_fd(socket.fileno)
      end

      def protected_from_others
        earlier = File.umask(0o077)
        yield
      ensure
        File.umask(earlier)
      end
    end
  end
end
