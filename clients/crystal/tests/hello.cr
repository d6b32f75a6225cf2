require "http/server"
require "panzer"

class MyWorker
  include Panzer::Worker

  def initialize(@loaded : String)
    @server = HTTP::Server.new { |context| context.response.puts "#{@loaded} from worker #{index}" }
  end

  def run
    @server.bind(Panzer.listeners.first)
    @server.listen
  end

  def stop
    @server.close
  end
end

Panzer.run(MyWorker.new("hello"), workers: 8, listen: 8000)
