//! clients/python

use super::conforms;

#[test]
fn it_conforms_to_the_protocol() {
    conforms(&["python3", "clients/python/tests/probe.py"]);
}
