//! The importer of bootc and rpm-ostree, as its crate has it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let command = ostree_ext::cli::run_from_iter(std::env::args_os());
    Ok(tokio::runtime::Runtime::new()?.block_on(command)?)
}
