//! The code of bootc's composefs backend, as its crate has it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let command = composefs_ctl::run_from_iter(std::env::args_os().skip(1));
    Ok(tokio::runtime::Runtime::new()?.block_on(command)?)
}
