// The runner in every browser that is installed.
import { installed } from '../browsers.mjs';
import { testRunner } from './runner.mjs';

for (const kind of ['chromium', 'firefox']) {
  testRunner(kind, ['browser.mjs', '--browser', kind], !installed(kind) && `there is no ${kind} on this machine`);
}
