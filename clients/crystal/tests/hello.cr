require "http/server"
require "panzer"

class MyWorker
  include Panzer::Worker

  def initialize(@loaded : String)
  end

  def run
    @server = server = HTTP::Server.new { |context| context.response.puts "#{@loaded} from worker #{index}" }
    server.bind(Panzer.listeners.first)
    server.listen
  end

  def stop
    @server.try &.close
  end
end

Panzer.run(MyWorker.new("hello"), workers: 8, listen: 8000)
