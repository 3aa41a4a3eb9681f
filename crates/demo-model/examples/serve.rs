//! The model by itself: `cargo run -p agentos-demo-model --example serve -- 127.0.0.1:8123 [REQUEST_LOG]`.

use std::error::Error;
use std::io::Write;

use agentos_demo_model::{Listen, Options, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let options = Options {
        listen: Listen::Tcp(address.parse()?),
        request_log: arguments.next().map(Into::into),
        exit_with_stdin: false,
    };
    run(options, |address| {
        // Whoever closed standard output doesn't want to know.
        let _ = writeln!(std::io::stdout(), "{address}");
    })
    .await?;
    Ok(())
}
