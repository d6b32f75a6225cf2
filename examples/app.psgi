# The smallest application for Starman.
sub { [200, ['Content-Type' => 'text/plain'], ["pid $$\n"]] }
