# frozen_string_literal: true

Gem::Specification.new do |spec|
  spec.name = "panzer"
  spec.version = File.read(File.join(__dir__, "lib/panzer.rb"))[/VERSION = "(.+?)"/, 1]
  spec.summary = "Load once, fork many: runs a Ruby program's workers under panzer"
  spec.authors = ["Panzer's authors"]
  spec.license = "Apache-2.0"
  spec.required_ruby_version = ">= 3.1"
  spec.files = Dir.chdir(__dir__) { Dir["lib/**/*.rb"] + ["README.md"] }
  # Part of Ruby until it became a gem of its own that comes with Ruby.
  spec.add_dependency "fiddle", "~> 1.0"
  spec.metadata["rubygems_mfa_required"] = "true"
end
