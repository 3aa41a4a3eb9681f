-- The schema of version 1, word for word, and what it may hold.
CREATE TABLE IF NOT EXISTS sessions (
    key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, agent_type TEXT NOT NULL, model TEXT NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    session INTEGER NOT NULL REFERENCES sessions (key) ON DELETE CASCADE, sequence INTEGER NOT NULL,
    at_ms INTEGER NOT NULL, notification TEXT NOT NULL, PRIMARY KEY (session, sequence)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
INSERT INTO sessions VALUES (3, '11111111-1111-4111-8111-111111111111', 'pi', 'demo', 1700000000000);
INSERT INTO sessions VALUES (7, '22222222-2222-4222-8222-222222222222', 'pi', 'provider', 1700000100000);
INSERT INTO events VALUES (3, 1, 1700000000100,
    '{"jsonrpc":"2.0","method":"_agentos/model","params":{"kind":"demo","reason":"no key, ''quoted'' – and so on"}}');
INSERT INTO events VALUES (3, 2, 1700000000900,
    '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"remembered – ü"}}}}');
