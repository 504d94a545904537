// From a list of [TeX, whether it is displayed] on standard input to a list of HTML.  Runs in the folder where npm put KaTeX.
const { renderToString } = require(require.resolve("katex", { paths: [process.cwd()] }));

const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
try {
  process.stdout.write(JSON.stringify(formulas.map(([tex, displayMode]) => renderToString(tex, { displayMode }))));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
