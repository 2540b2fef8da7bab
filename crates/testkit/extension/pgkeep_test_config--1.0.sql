-- Configuration tables as pg_extension_config_dump() knows them: one whole, one with a condition, a foreign key between
-- them against the alphabet, a sequence, and a table that is the extension's alone.
CREATE TABLE region (
    name text PRIMARY KEY,
    built_in boolean NOT NULL DEFAULT false
);
INSERT INTO region VALUES ('eu', true), ('us', true);

CREATE TABLE "a setting" (
    id serial PRIMARY KEY,
    region text NOT NULL REFERENCES region,
    value text
);

CREATE TABLE cache (key text PRIMARY KEY, value text);
INSERT INTO cache VALUES ('made by', 'the extension''s script');

SELECT pg_catalog.pg_extension_config_dump('region', 'WHERE NOT built_in');
SELECT pg_catalog.pg_extension_config_dump('"a setting"', '');
SELECT pg_catalog.pg_extension_config_dump('"a setting_id_seq"', '');
