# frozen_string_literal: true

require "panzer"

# Kamisama's interface on top of panzer: `require "panzer/kamisama"` in the place of `require "kamisama"`.
class Kamisama
  # The longest delay before a respawn. With panzer's own, a worker that always fails would never reach the limit.
  MAX_DELAY = 2

  # Runs as many workers as `instances` says, and restarts those that end. More than `respawn_limit` respawns within
  # `respawn_interval` seconds end it. Any other option is panzer's.
  def self.run(options = {}, &block)
    options = options.transform_keys(&:to_sym)
    limit, interval = options.delete(:respawn_limit) || 3, options.delete(:respawn_interval) || 60
    ours = {
      workers: options.delete(:instances) || raise(ArgumentError, "Kamisama.run needs instances, the number of workers"),
      respawn_limit: "#{limit}/#{interval}s",
      delay_max: MAX_DELAY,
      signals: :kamisama
    }
    Panzer.run(Task.new(block), **ours, **options)
  end

  # One worker. Its index begins with 1.
  class Task
    include Panzer::Worker

    def initialize(block)
      @block = block
    end

    def run
      log("Worker started. Hello!")
      @block.call(index + 1)
    rescue Exception => e # rubocop:disable Lint/RescueException -- any end of a worker is said, that by a signal too
      log("Shutting down... #{e.message}")
      exit
    end

    private

    def log(message)
      puts("[WORKER #{index + 1}] #{message}")
    end
  end
  private_constant :Task
end
