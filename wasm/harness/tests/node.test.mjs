// The runner on this Node.
import { testRunner } from './runner.mjs';

testRunner('node', ['node.mjs'], false);
