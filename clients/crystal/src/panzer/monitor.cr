# What the first seed's programs require. Its document was written for Crystal 0.2x, whose HTTP::Server took its port when it was made;
# with this file that program runs as it stands there.
require "http/server"
require "../panzer"

class HTTP::Server
  # A server for a port of this machine, which `bind` opens.
  def self.new(port : Int32, &handler : Context ->) : self
    # The document's block is called with `ctx` and asks `context`.
    server = new do |context|
      Fiber.current.panzer_context = context
      handler.call(context)
    end
    server.own_port = port
    server
  end

  # :nodoc:
  property own_port : Int32 = 0

  # Opens the port that the server was made for.
  def bind : Socket::IPAddress
    bind_tcp(own_port)
  end

  # The first address that it is bound to.
  def local_address : Socket::Address
    addresses.first
  end
end

class Fiber
  # :nodoc:
  property panzer_context : HTTP::Server::Context?
end

module Panzer::Worker
  # The request that the current fiber answers.
  def context : HTTP::Server::Context
    Fiber.current.panzer_context.not_nil!
  end
end
