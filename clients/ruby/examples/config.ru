# frozen_string_literal: true

# An application of some size: Sinatra, what such applications usually load, and a table of its own.
require "sinatra/base"
%w[bigdecimal csv date digest erb fileutils json logger net/http open3 openssl optparse ostruct pstore rexml/document
   securerandom set socket strscan tempfile time uri yaml zlib].each do |name|
  require name
rescue LoadError
  nil
end

TABLE = (0...200_000).to_h do |id|
  [id, { id: id, name: "name #{id}", tags: ["tag #{id % 97}", "tag #{id % 89}"] }]
end

class App < Sinatra::Base
  set :environment, :production
  disable :logging, :protection

  500.times do |number|
    get("/page#{number}/:id") { "page #{number} #{params["id"]}" }
  end

  get "/" do
    show(rand(TABLE.size))
  end

  get "/rows/:id" do
    show(params["id"].to_i % TABLE.size)
  end

  def show(id)
    row = TABLE.fetch(id)
    content_type :json
    { **row, pid: Process.pid, related: Array.new(20) { |at| TABLE.fetch((row[:id] + at) % TABLE.size)[:name] } }.to_json
  end
end

run App
