# frozen_string_literal: true

module ServerEngine
  # A flag for whose change a thread can wait.
  class BlockingFlag
    def initialize
      @set = false
      @mutex = Mutex.new
      @changed = ConditionVariable.new
    end

    # Whether this call has set it.
    def set!
      change_to(true)
    end

    # Whether this call has reset it.
    def reset!
      change_to(false)
    end

    def set?
      @set
    end

    # Whether it is set, after at most so many seconds.
    def wait_for_set(timeout = nil)
      wait_until(true, timeout)
      @set
    end
    alias wait wait_for_set

    # Whether it is reset, after at most so many seconds.
    def wait_for_reset(timeout = nil)
      wait_until(false, timeout)
      !@set
    end

    private

    def change_to(value)
      @mutex.synchronize do
        changed = @set != value
        @set = value
        @changed.broadcast
        changed
      end
    end

    def wait_until(value, timeout)
      @mutex.synchronize { @changed.wait(@mutex, timeout) if @set != value }
    end
  end
end
