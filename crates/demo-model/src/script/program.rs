//! Hello worlds, and how the file of a language is run.

/// One programming language the script can greet the world in.
#[derive(Debug)]
pub(super) struct Language {
    /// Words of a prompt that name it, lower case.
    names: &'static [&'static str],
    /// Extensions, the usual one first.
    extensions: &'static [&'static str],
    program: &'static str,
    /// The command that runs a file; `{}` is the quoted path, `{stem}` the quoted path without its extension.
    run: &'static str,
}

const LANGUAGES: &[Language] = &[
    Language {
        names: &["typescript", "ts"],
        extensions: &["ts", "mts", "cts", "tsx"],
        program: "const greeting: string = \"Hello, world!\";\n\nconsole.log(greeting);\n",
        run: "node {}",
    },
    Language {
        names: &["javascript", "js", "node", "node.js", "nodejs", "ecmascript"],
        extensions: &["js", "mjs", "cjs", "jsx"],
        program: "console.log(\"Hello, world!\");\n",
        run: "node {}",
    },
    Language {
        names: &["python", "python3"],
        extensions: &["py"],
        program: "def main() -> None:\n    print(\"Hello, world!\")\n\n\nif __name__ == \"__main__\":\n    main()\n",
        run: "python3 {}",
    },
    Language {
        names: &["rust"],
        extensions: &["rs"],
        program: "fn main() {\n    println!(\"Hello, world!\");\n}\n",
        run: "rustc -o {stem} {} && {stem}",
    },
    Language {
        names: &["go", "golang"],
        extensions: &["go"],
        program: "package main\n\nimport \"fmt\"\n\nfunc main() {\n\tfmt.Println(\"Hello, world!\")\n}\n",
        run: "go run {}",
    },
    Language {
        names: &["c++", "cpp"],
        extensions: &["cpp", "cc", "cxx"],
        program: "#include <iostream>\n\nint main() {\n    std::cout << \"Hello, world!\\n\";\n    return 0;\n}\n",
        run: "c++ -o {stem} {} && {stem}",
    },
    Language {
        names: &["c#", "csharp"],
        extensions: &["cs"],
        program: "System.Console.WriteLine(\"Hello, world!\");\n",
        run: "dotnet run {}",
    },
    Language {
        names: &["c"],
        extensions: &["c"],
        program: "#include <stdio.h>\n\nint main(void) {\n    puts(\"Hello, world!\");\n    return 0;\n}\n",
        run: "cc -o {stem} {} && {stem}",
    },
    Language {
        names: &["java"],
        extensions: &["java"],
        program: "class Hello {\n    public static void main(String[] args) {\n        System.out.println(\"Hello, world!\");\n    }\n}\n",
        run: "java {}",
    },
    Language {
        names: &["kotlin"],
        extensions: &["kt", "kts"],
        program: "fun main() {\n    println(\"Hello, world!\")\n}\n",
        run: "kotlin {}",
    },
    Language {
        names: &["swift"],
        extensions: &["swift"],
        program: "print(\"Hello, world!\")\n",
        run: "swift {}",
    },
    Language {
        names: &["bash"],
        extensions: &["bash"],
        program: "#!/usr/bin/env bash\nset -euo pipefail\n\necho 'Hello, world!'\n",
        run: "bash {}",
    },
    Language {
        names: &["sh", "shell", "posix"],
        extensions: &["sh"],
        program: "#!/bin/sh\n\necho 'Hello, world!'\n",
        run: "sh {}",
    },
    Language { names: &["ruby"], extensions: &["rb"], program: "puts 'Hello, world!'\n", run: "ruby {}" },
    Language {
        names: &["perl"],
        extensions: &["pl", "pm"],
        program: "use strict;\nuse warnings;\n\nprint \"Hello, world!\\n\";\n",
        run: "perl {}",
    },
    Language {
        names: &["php"],
        extensions: &["php"],
        program: "<?php\n\necho \"Hello, world!\\n\";\n",
        run: "php {}",
    },
    Language { names: &["lua"], extensions: &["lua"], program: "print(\"Hello, world!\")\n", run: "lua {}" },
    Language {
        names: &["haskell"],
        extensions: &["hs"],
        program: "main :: IO ()\nmain = putStrLn \"Hello, world!\"\n",
        run: "runghc {}",
    },
    Language {
        names: &["zig"],
        extensions: &["zig"],
        program: "const std = @import(\"std\");\n\npub fn main() void {\n    std.debug.print(\"Hello, world!\\n\", .{});\n}\n",
        run: "zig run {}",
    },
    Language {
        names: &["elixir"],
        extensions: &["exs", "ex"],
        program: "IO.puts(\"Hello, world!\")\n",
        run: "elixir {}",
    },
    Language { names: &["r"], extensions: &["r"], program: "cat(\"Hello, world!\\n\")\n", run: "Rscript {}" },
    Language {
        names: &["sql"],
        extensions: &["sql"],
        program: "SELECT 'Hello, world!';\n",
        run: "sqlite3 :memory: < {}",
    },
    Language {
        names: &["html", "webpage"],
        extensions: &["html", "htm"],
        program: "<!doctype html>\n<html lang=\"en\">\n  <head>\n    <meta charset=\"utf-8\" />\n    <title>Hello</title>\n  </head>\n  <body>\n    <h1>Hello, world!</h1>\n  </body>\n</html>\n",
        run: "cat {}",
    },
    Language { names: &["markdown"], extensions: &["md"], program: "# Hello, world!\n", run: "cat {}" },
    Language {
        names: &["json"],
        extensions: &["json"],
        program: "{ \"greeting\": \"Hello, world!\" }\n",
        run: "cat {}",
    },
];

impl Language {
    pub(super) fn named(word: &str) -> Option<&'static Self> {
        LANGUAGES.iter().find(|l| l.names.contains(&word))
    }

    /// The language of a file, by its extension.
    pub(super) fn of(path: &str) -> Option<&'static Self> {
        let extension = path.rsplit('/').next()?.rsplit_once('.')?.1.to_ascii_lowercase();
        LANGUAGES.iter().find(|l| l.extensions.contains(&extension.as_str()))
    }

    pub(super) fn hello_world(&self) -> &'static str {
        self.program
    }

    /// Where a hello world goes when the prompt names no file.
    pub(super) fn default_file(&self) -> String {
        format!("hello.{}", self.extensions[0])
    }
}

/// The command that runs this file.
pub(super) fn run_command(path: &str) -> String {
    let quoted = shell_quote(&anchored(path));
    match Language::of(path) {
        Some(language) => {
            let anchored = anchored(path);
            let stem = anchored.rsplit_once('.').map_or(anchored.as_str(), |(stem, _)| stem);
            language.run.replace("{stem}", &shell_quote(stem)).replace("{}", &quoted)
        }
        None => format!("sh {quoted}"),
    }
}

/// A path a shell can't take for an option or look up on PATH.
fn anchored(path: &str) -> String {
    if path.starts_with('/') || path.starts_with("./") || path.starts_with("../") {
        path.to_owned()
    } else {
        format!("./{path}")
    }
}

/// One word of POSIX shell, left bare where nothing needs quoting.
pub(super) fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:@%+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_run_by_its_extension() {
        assert_eq!(run_command("hello.ts"), "node ./hello.ts");
        assert_eq!(run_command("/a b/x.c"), "cc -o '/a b/x' '/a b/x.c' && '/a b/x'");
        assert_eq!(run_command("-rf"), "sh ./-rf");
    }

    #[test]
    fn shell_words_survive_every_character() {
        assert_eq!(shell_quote("a-b.c"), "a-b.c");
        assert_eq!(shell_quote(""), "''");
        assert_eq!(shell_quote("it's $x"), r"'it'\''s $x'");
    }
}
