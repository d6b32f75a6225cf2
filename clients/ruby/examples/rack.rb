#!/usr/bin/env ruby
# frozen_string_literal: true

# Serves a Rack application by puma's server, on the listener that panzer passes:
#
#     ruby rack.rb config.ru                                          # finds panzer, and runs under it
#     panzer --preload -w 8 -l 8000 -- ruby rack.rb config.ru         # the same, with the options as flags

require "panzer"
require "puma"
require "puma/server"
require "rack"

# One worker with some threads.
class RackWorker
  include Panzer::Worker

  def initialize(app)
    # What it has served counts for --refork and --max-requests.
    @count = 0
    @app = proc { |env| app.call(env).tap { served(@count += 1) } }
  end

  def run
    # Before its version 6 puma takes its output from here.
    events = Puma::Events.respond_to?(:stdio) ? Puma::Events.stdio : nil
    # With queue_requests puma closes, when it stops, a connection whose request has not come yet.
    @server = Puma::Server.new(@app, events, { min_threads: 1, max_threads: 5, queue_requests: false })
    Panzer.listeners.each { |listener| @server.binder.inherit_tcp_listener(nil, nil, listener) }
    thread = @server.run
    ready!
    @server.stop if stopping?
    thread.join
  end

  # Finishes the requests under way.
  def stop
    @server&.stop
  end
end

app, = Rack::Builder.parse_file(ARGV.fetch(0, "config.ru"))
Panzer.run(RackWorker.new(app), workers: 8, listen: 8000)
