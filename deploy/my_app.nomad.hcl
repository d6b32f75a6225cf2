# my_app under panzer, as a job of Nomad's. The file of the program, panzer and panzerctl are on each node.
#    nomad job run deploy/my_app.nomad.hcl
#
# For a new version of the job Nomad replaces whole allocations, one at a time. Panzer keeps the workers of each one.

job "my_app" {
  datacenters = ["dc1"]

  group "web" {
    count = 2

    network {
      port "http" {}
    }

    # The next allocation is replaced once this one was ready for 10 s. A version that fails goes back to the one before.
    update {
      max_parallel     = 1
      min_healthy_time = "10s"
      healthy_deadline = "3m"
      auto_revert      = true
    }

    task "my_app" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/usr/local/bin/panzer"
        args    = ["--listen", "${NOMAD_ADDR_http}", "--workers", "2", "--stop", "TERM/60s/INT/5s/KILL", "/srv/my_app/bin/my_app"]
      }

      env {
        # The folder for the pid file and the control socket, in the file system of the task.
        RUNTIME_DIRECTORY = "/tmp/panzer"
      }

      # Longer than the whole schedule --stop. The balancer learns before that the allocation goes.
      kill_signal    = "SIGTERM"
      kill_timeout   = "75s"
      shutdown_delay = "5s"

      service {
        name     = "my-app"
        port     = "http"
        provider = "nomad"

        check {
          type     = "http"
          path     = "/"
          interval = "5s"
          timeout  = "2s"
        }
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }
  }
}
