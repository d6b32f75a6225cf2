# frozen_string_literal: true

require_relative "support"

# examples/rack.rb, which serves a Rack application by puma's server.
class RackTest < PanzerTest
  EXAMPLE = File.read(File.expand_path("../examples/rack.rb", __dir__))
  APP = <<~'RUBY'
    run ->(env) { [200, { "content-type" => "text/plain" }, ["hello from #{ENV["PANZER_GENERATION"]}"]] }
  RUBY

  def test_no_request_is_lost_by_reloads_under_load
    skip("puma is not installed") unless system("puma", "--version", out: File::NULL, err: File::NULL)
    port = free_port
    env = { "PANZER_LISTEN" => "127.0.0.1:#{port}", "PANZER_WORKERS" => "2", "PANZER_BAKE" => "50ms" }
    app = app(EXAMPLE, args: ["config.ru"], env: env, files: { "config.ru" => APP })
    app.wait_for(/generation 1 serves/, "err")
    stop, lost = false, []
    load = Array.new(3) do
      Thread.new do
        until stop
          answer = get(port)
          lost << answer unless answer.to_s.start_with?("HTTP/1.1 200") && answer.include?("hello from ")
        end
      end
    end
    (2..6).each do |generation|
      app.signal("USR1")
      app.wait_for(/reload done: generation #{generation} serves/, "err")
    end
    stop = true
    load.each(&:join)
    assert_empty lost
    app.eventually("only the last generation answers") { get(port).include?("hello from 6") }
    assert_equal 0, app.stop
  end

  private

  def get(port)
    TCPSocket.open("127.0.0.1", port) do |socket|
      socket.write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
      socket.read
    end
  rescue SystemCallError => e
    e.message
  end
end
