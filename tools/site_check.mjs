// Checks the built docs site in headless Chromium, from its folder: no server, no network.
//
//   tools/docs && npm install --no-save puppeteer-core axe-core && node tools/site_check.mjs [OUT] [PAGE ...]
//
// It opens each page at three widths and in two schemes, and reports violations of accessibility that axe finds, text
// that needs sideways scrolling, errors in the console, and a search without results. Screenshots go to the folder OUT
// (build/screenshots unless given). CHROMIUM names the program if it is not `chromium`.

import { createRequire } from "node:module";
import { mkdirSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.cwd(), "package.json"));
const puppeteer = require("puppeteer-core");
const AXE = require.resolve("axe-core/axe.min.js");

const SITE = path.resolve("build/site");
const [out = "build/screenshots", ...named] = process.argv.slice(2);
const PAGES = named.length ? named : ["index", "install", "tutorial", "coming-from", "driving-workloads", "add-a-model",
  "reference/metrics", "architecture"];
const WIDTHS = [390, 768, 1440];
const SCHEMES = ["light", "dark"];
const SEARCHES = { "average precision": "metrics", "resume": "runs" };

const address = (page) => pathToFileURL(path.join(SITE, `${page}.html`)).href;
const problems = [];

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--allow-file-access-from-files"],
});

async function open(page, width, scheme) {
  const tab = await browser.newPage();
  tab.on("console", (message) => message.type() === "error" && problems.push(`${page}: console: ${message.text()}`));
  tab.on("request", (request) => /^https?:/.test(request.url()) && problems.push(`${page}: loads ${request.url()}`));
  await tab.setViewport({ width, height: 900 });
  await tab.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await tab.goto(address(page), { waitUntil: "load" });
  return tab;
}

// The theme makes code that scrolls reachable by the keyboard once it is on the screen.
async function showAll(tab) {
  await tab.evaluate(async () => {
    for (let y = 0; y < document.body.scrollHeight; y += 700) {
      window.scrollTo(0, y);
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    }
    window.scrollTo(0, 0);
    await new Promise((done) => setTimeout(done, 500)); // the tabs of the header fade in
  });
}

async function violations(tab) {
  await showAll(tab);
  await tab.addScriptTag({ path: AXE });
  const { violations } = await tab.evaluate(() => axe.run({ resultTypes: ["violations"] }));
  return violations.map(({ id, impact, nodes }) => `${id} (${impact}), ${nodes.length} times, first: ${nodes[0].html.slice(0, 140)} ${nodes[0].failureSummary.slice(0, 300)}`);
}

mkdirSync(out, { recursive: true });
for (const page of PAGES) {
  for (const scheme of SCHEMES) {
    for (const width of WIDTHS) {
      const tab = await open(page, width, scheme);
      const wide = await tab.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      if (wide > 0) problems.push(`${page}, ${width} px: ${wide} px wider than the window`);
      await tab.screenshot({ path: path.join(out, `${page.replace("/", "-")}-${width}-${scheme}.png`), fullPage: false });
      if (width !== 768) {
        for (const found of await violations(tab)) problems.push(`${page}, ${width} px, ${scheme}: ${found}`);
      }
      await tab.close();
    }
  }
}
for (const [words, expected] of Object.entries(SEARCHES)) {
  const tab = await open("index", 1440, "light");
  await tab.click(".md-search__input");
  await tab.type(".md-search__input", words);
  const selector = ".md-search-result__item a";
  const links = await tab.waitForSelector(selector, { timeout: 20000 })
    .then(() => tab.$$eval(selector, (found) => found.map((link) => link.getAttribute("href"))))
    .catch(() => []);
  if (!links.some((link) => link.includes(expected))) problems.push(`search "${words}": ${links.length} results, none in ${expected}`);
  await tab.screenshot({ path: path.join(out, `search-${words.replaceAll(" ", "-")}.png`) });
  await tab.close();
}
await browser.close();
console.log(problems.length ? problems.join("\n") : `${PAGES.length} pages, ${WIDTHS.length} widths, ${SCHEMES.length} schemes: no problem`);
process.exitCode = problems.length ? 1 : 0;
