//! A secret on its way: shown without its value, and wiped from memory when it has arrived.

use std::fmt;

use zeroize::Zeroize;

use crate::v1::Secret;

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("destinations", &self.destinations)
            .finish_non_exhaustive()
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_a_secret_shows_its_name_alone() {
        let mut request = crate::v1::CreateVmRequest::default();
        let mut secret = Secret::default();
        secret.name.push_str("API_KEY");
        secret.value.push_str("hidden");
        request.secrets.push(secret);
        let shown = format!("{request:?}");
        assert!(shown.contains("API_KEY") && !shown.contains("hidden"), "{shown}");
    }
}
