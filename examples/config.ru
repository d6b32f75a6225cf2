# The smallest application for puma and unicorn.
run proc { |env| [200, { 'content-type' => 'text/plain' }, ["pid #{Process.pid}\n"]] }
