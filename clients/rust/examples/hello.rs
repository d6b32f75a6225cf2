use std::io::{Read, Write};
use std::net::TcpListener;

use panzer_mold::{Program, Worker};

fn serve(worker: &Worker, loaded: &str) {
    let listener = TcpListener::from(panzer_mold::listeners().remove(0));
    for client in listener.incoming().flatten() {
        let mut client = client;
        let body = format!("{loaded} from worker {}\n", worker.index());
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = client.read(&mut [0; 4096]).and_then(|_| write!(client, "{head}{body}"));
    }
}

fn main() {
    let loaded = String::from("hello");
    Program::new(move |worker| serve(worker, &loaded)).option("workers", 8).option("listen", 8000).run()
}
