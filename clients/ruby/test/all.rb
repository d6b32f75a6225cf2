# frozen_string_literal: true

# The examples of the READMEs, and panzer.rb, under a real panzer: PANZER=target/debug/panzer ruby test/all.rb
Dir[File.join(__dir__, "*_test.rb")].sort.each { |file| require file }
