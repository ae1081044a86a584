SELECT pg_catalog.set_config('search_path', '', false);
CREATE FUNCTION public.converge_lost_race() RETURNS bigint
    LANGUAGE plpgsql
    AS $$
begin
    raise exception 'another commit came first; this one is run again' using errcode = '40001';
end $$;
CREATE TABLE public.converge_agent (
    lease bytea NOT NULL,
    id text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_dead (
    lease bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off);
CREATE TABLE public.converge_dedup (
    pool text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_done (
    pool text NOT NULL COLLATE pg_catalog."C",
    state text NOT NULL COLLATE pg_catalog."C",
    until bigint NOT NULL,
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off);
CREATE TABLE public.converge_epoch (
    one bigint NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_expiry (
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_held (
    lease bytea NOT NULL,
    rank bigint NOT NULL,
    id bytea NOT NULL,
    nonce bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_joined (
    lease bytea NOT NULL,
    pool text NOT NULL COLLATE pg_catalog."C",
    agent text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_key (
    pool text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_lane (
    pool text NOT NULL COLLATE pg_catalog."C",
    lane bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_later (
    due bigint NOT NULL,
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_lease (
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_limit (
    deadline bigint NOT NULL,
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_member (
    pool text NOT NULL COLLATE pg_catalog."C",
    agent text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_notice (
    lease bytea NOT NULL,
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_order (
    pool text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    number bigint NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_pool (
    id text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_ready (
    lane bytea NOT NULL,
    rank bigint NOT NULL,
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE SEQUENCE public.converge_revision
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
CREATE TABLE public.converge_schema (
    version integer NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE public.converge_state (
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off, fillfactor='70', autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');
CREATE TABLE public.converge_task (
    id bytea NOT NULL,
    value bytea NOT NULL,
    revision bigint NOT NULL
)
WITH (vacuum_truncate=off);
CREATE VIEW public.converge_tasks AS
 SELECT (encode(t.id, 'hex'::text))::uuid AS id,
    p.place,
    p.rank,
    p.moment,
    p.pool,
    p.outcome,
    p.lease,
    convert_from(t.value, 'UTF8'::name) AS task,
    convert_from(s.value, 'UTF8'::name) AS record,
    GREATEST(t.revision, s.revision, p.revision) AS revision
   FROM ((public.converge_task t
     LEFT JOIN public.converge_state s ON ((s.id = t.id)))
     LEFT JOIN ( SELECT converge_ready.id,
            'ready'::text AS place,
            converge_ready.rank,
            NULL::bigint AS moment,
            NULL::text AS pool,
            NULL::text AS outcome,
            NULL::text AS lease,
            converge_ready.revision
           FROM public.converge_ready
        UNION ALL
         SELECT converge_later.id,
            'later'::text,
            NULL::bigint,
            converge_later.due,
            NULL::text,
            NULL::text,
            NULL::text,
            converge_later.revision
           FROM public.converge_later
        UNION ALL
         SELECT converge_held.id,
            'held'::text,
            converge_held.rank,
            NULL::bigint,
            NULL::text,
            NULL::text,
            encode(converge_held.lease, 'hex'::text) AS encode,
            converge_held.revision
           FROM public.converge_held
        UNION ALL
         SELECT converge_done.id,
            'done'::text,
            NULL::bigint,
            converge_done.until,
            converge_done.pool,
            converge_done.state,
            NULL::text,
            converge_done.revision
           FROM public.converge_done) p ON ((p.id = t.id)));
CREATE UNLOGGED TABLE public.converge_waiter (
    channel text NOT NULL COLLATE pg_catalog."C",
    waiter bigint NOT NULL,
    listener text NOT NULL,
    pid integer NOT NULL,
    seen timestamp with time zone DEFAULT clock_timestamp() NOT NULL
)
WITH (vacuum_truncate=off, autovacuum_vacuum_scale_factor='0.01', autovacuum_vacuum_threshold='500');
ALTER TABLE public.converge_waiter ALTER COLUMN waiter ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.converge_waiter_waiter_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
INSERT INTO public.converge_dead VALUES ('\xd84fe68d08d4049a8454f88edd144dac', '\x', 21);
INSERT INTO public.converge_dedup VALUES ('docs', 'd', '\x5b223031613232376361313532353762656238303030626436333161313864633766222c22313536343937326264323736346365623163326463333735225d', 16);
INSERT INTO public.converge_done VALUES ('docs', 'COMPLETED', 1796050284700486, '\x01a227ca13d675b68000732fcba05600', '\x', 7);
INSERT INTO public.converge_done VALUES ('docs', 'FAILED', 1796568684722881, '\x01a227ca13d675b68001650fb70de709', '\x', 8);
INSERT INTO public.converge_done VALUES ('docs', 'CANCELLED', 1796568684794322, '\x01a227ca14d07e5a8000466c84933a36', '\x', 12);
INSERT INTO public.converge_epoch VALUES (0, '\x22333666343230653731333235343033613032666638336461326330393138393222', 1);
INSERT INTO public.converge_held VALUES ('\xd84fe68d08d4049a8454f88edd144dac', 1795963884502357, '\x01a227ca13d675b6800374aa0503c984', '\x8a768eced2c7dc79d8a8c1b6e68b4454', '\x31373935393633383834363835313330', 6);
INSERT INTO public.converge_key VALUES ('docs', 'k', '\x7b22616374697665223a223031613232376361313533353765663138303030646330646162326638366233222c226e657874223a337d', 20);
INSERT INTO public.converge_lane VALUES ('docs', '\x207c595871a31eaff80194ad958945c8', '\x7b22706f6f6c223a22646f6373227d', 3);
INSERT INTO public.converge_lane VALUES ('docs', '\x7b758fef9ed77704d8b544ccfb1618aa', '\x7b22706f6f6c223a22646f6373222c2274797065223a22756e77616e746564227d', 10);
INSERT INTO public.converge_lane VALUES ('docs', '\x1b719e646e3d144438c8c803ad7a8b25', '\x7b22706f6f6c223a22646f6373222c2274797065223a226c61746572227d', 13);
INSERT INTO public.converge_lane VALUES ('docs', '\x1a72e9a859402306f7d06100a0b3f7fc', '\x7b22706f6f6c223a22646f6373222c2274797065223a226f6e6365227d', 15);
INSERT INTO public.converge_lane VALUES ('docs', '\x1d987dfb4ce99853e35d678fbb772992', '\x7b22706f6f6c223a22646f6373222c2274797065223a226f726465726564227d', 17);
INSERT INTO public.converge_later VALUES (1795963885643766, '\x01a227ca13d675b680022a6ce11bdafb', '\x22323037633539353837316133316561666638303139346164393538393435633822', 9);
INSERT INTO public.converge_later VALUES (3523963884806582, '\x01a227ca150677818000f4fd4de9aae7', '\x22316237313965363436653364313434343338633863383033616437613862323522', 14);
INSERT INTO public.converge_limit VALUES (3524050284806582, '\x01a227ca150677818000f4fd4de9aae7', '\x', 14);
INSERT INTO public.converge_order VALUES ('docs', 'k', 1, '\x22303161323237636131353538373964323830303061323064343231336639343522', 19);
INSERT INTO public.converge_order VALUES ('docs', 'k', 2, '\x22303161323237636131353661373834353830303039323665663831383065353522', 20);
INSERT INTO public.converge_pool VALUES ('docs', '\x7b2261646d697373696f6e223a226f70656e222c22616c6c6f77223a5b5d2c2264656475705f77696e646f775f736563223a38363430302e302c226964223a22646f6373222c2269735f706175736564223a66616c73652c226b6565705f636f6d706c657465645f736563223a38363430302e302c226b6565705f6661696c65645f736563223a3630343830302e302c227072696f726974795f737465705f736563223a333630302e302c22726571756972655f6475726162696c697479223a22222c227365637265745f68617368223a22227d', 2);
INSERT INTO public.converge_ready VALUES ('\x1a72e9a859402306f7d06100a0b3f7fc', 1795963884837745, '\x01a227ca15257beb8000bd631a18dc7f', '\x', 16);
INSERT INTO public.converge_ready VALUES ('\x1d987dfb4ce99853e35d678fbb772992', 1795963884853934, '\x01a227ca15357ef18000dc0dab2f86b3', '\x', 18);
INSERT INTO public.converge_schema VALUES (1, '2026-11-29 14:51:23.867391+00');
INSERT INTO public.converge_state VALUES ('\x01a227ca13d675b68000732fcba05600', '\x7b227374617465223a22434f4d504c45544544222c22617474656d707473223a312c22647565223a302c2272616e6b223a302c226e6f6e6365223a223861373638656365643263376463373964386138633162366536386234343534222c22746f6b656e223a362c226279223a226167656e74222c22726573756c74223a7b22776f726473223a332c22726177223a7b22246279746573223a224150383d227d7d2c22686973746f7279223a5b5b313739353936333838343730303438362c22636f6d706c65746564222c226167656e74222c22222c362c313739353936333838343638353133305d5d2c2266696e6973686564223a313739353936333838343730303438367d', 7);
INSERT INTO public.converge_state VALUES ('\x01a227ca13d675b68001650fb70de709', '\x7b227374617465223a224641494c4544222c22617474656d707473223a312c22647565223a302c2272616e6b223a302c226e6f6e6365223a223861373638656365643263376463373964386138633162366536386234343534222c22646967657374223a2238376161306333343461656636303232222c22746f6b656e223a362c226279223a226167656e74222c22726573756c74223a6e756c6c2c226572726f72223a22666f7220676f6f64222c22686973746f7279223a5b5b313739353936333838343732323838312c226661696c6564222c226167656e74222c22666f7220676f6f64222c362c313739353936333838343638353133305d5d2c2266696e6973686564223a313739353936333838343732323838317d', 8);
INSERT INTO public.converge_state VALUES ('\x01a227ca13d675b680022a6ce11bdafb', '\x7b227374617465223a2250454e44494e47222c22617474656d707473223a312c22647565223a313739353936333838353634333736362c2272616e6b223a313739353936333838353634333736362c226e6f6e6365223a223861373638656365643263376463373964386138633162366536386234343534222c22646967657374223a2238363564663361643064663835353133222c22746f6b656e223a362c226279223a226167656e74222c22726573756c74223a6e756c6c2c226572726f72223a226f6e6365222c22686973746f7279223a5b5b313739353936333838343733373331362c226661696c6564222c226167656e74222c226f6e6365222c362c313739353936333838343638353133305d5d7d', 9);
INSERT INTO public.converge_state VALUES ('\x01a227ca14d07e5a8000466c84933a36', '\x7b227374617465223a2243414e43454c4c4544222c22617474656d707473223a302c22647565223a302c2272616e6b223a302c22646967657374223a2232333435623837363334353233613566222c22726573756c74223a6e756c6c2c22686973746f7279223a5b5b313739353936333838343739343332322c2263616e63656c6c6564222c22222c22222c302c305d5d2c2266696e6973686564223a313739353936333838343739343332327d', 12);
INSERT INTO public.converge_task VALUES ('\x01a227ca13d675b68000732fcba05600', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223230376335393538373161333165616666383031393461643935383934356338222c22647565223a313739353936333838343530323335372c2272616e6b223a313739353936333838343530323335372c227375626d6974746564223a313739353936333838343530323335372c22696e70757473223a7b226e223a307d2c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 4);
INSERT INTO public.converge_task VALUES ('\x01a227ca13d675b68001650fb70de709', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223230376335393538373161333165616666383031393461643935383934356338222c22647565223a313739353936333838343530323335372c2272616e6b223a313739353936333838343530323335372c227375626d6974746564223a313739353936333838343530323335372c22696e70757473223a7b226e223a317d2c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 4);
INSERT INTO public.converge_task VALUES ('\x01a227ca13d675b680022a6ce11bdafb', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223230376335393538373161333165616666383031393461643935383934356338222c22647565223a313739353936333838343530323335372c2272616e6b223a313739353936333838343530323335372c227375626d6974746564223a313739353936333838343530323335372c22696e70757473223a7b226e223a327d2c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 4);
INSERT INTO public.converge_task VALUES ('\x01a227ca13d675b6800374aa0503c984', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223230376335393538373161333165616666383031393461643935383934356338222c22647565223a313739353936333838343530323335372c2272616e6b223a313739353936333838343530323335372c227375626d6974746564223a313739353936333838343530323335372c22696e70757473223a7b226e223a337d2c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 4);
INSERT INTO public.converge_task VALUES ('\x01a227ca14d07e5a8000466c84933a36', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223762373538666566396564373737303464386235343463636662313631386161222c22647565223a313739353936333838343735323839372c2272616e6b223a313739353936333838343735323839372c227375626d6974746564223a313739353936333838343735323839372c2274797065223a22756e77616e746564222c22696e70757473223a7b7d2c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 11);
INSERT INTO public.converge_task VALUES ('\x01a227ca150677818000f4fd4de9aae7', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223162373139653634366533643134343433386338633830336164376138623235222c22647565223a333532333936333838343830363538322c2272616e6b223a333532333936333838343830363538322c227375626d6974746564223a313739353936333838343830363436392c2274797065223a226c61746572222c22696e70757473223a7b7d2c22646561646c696e65223a333532343035303238343830363538322c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 14);
INSERT INTO public.converge_task VALUES ('\x01a227ca15257beb8000bd631a18dc7f', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223161373265396138353934303233303666376430363130306130623366376663222c22647565223a313739353936333838343833373734352c2272616e6b223a313739353936333838343833373734352c227375626d6974746564223a313739353936333838343833373734352c22646967657374223a22313536343937326264323736346365623163326463333735222c2274797065223a226f6e6365222c22696e70757473223a7b2274657874223a22c3a9227d2c2264656475705f6b6579223a2264222c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 16);
INSERT INTO public.converge_task VALUES ('\x01a227ca15357ef18000dc0dab2f86b3', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223164393837646662346365393938353365333564363738666262373732393932222c22647565223a313739353936333838343835333933342c2272616e6b223a313739353936333838343835333933342c227375626d6974746564223a313739353936333838343835333933342c2274797065223a226f726465726564222c22696e70757473223a7b226e223a307d2c226f72646572696e675f6b6579223a226b222c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 18);
INSERT INTO public.converge_task VALUES ('\x01a227ca155879d28000a20d4213f945', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223164393837646662346365393938353365333564363738666262373732393932222c22647565223a313739353936333838343838383631342c2272616e6b223a313739353936333838343838383631342c227375626d6974746564223a313739353936333838343838383631342c2274797065223a226f726465726564222c22696e70757473223a7b226e223a317d2c226f72646572696e675f6b6579223a226b222c226e756d626572223a312c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 19);
INSERT INTO public.converge_task VALUES ('\x01a227ca156a78458000926ef8180e55', '\x7b22706f6f6c223a22646f6373222c226c616e65223a223164393837646662346365393938353365333564363738666262373732393932222c22647565223a313739353936333838343930363531372c2272616e6b223a313739353936333838343930363531372c227375626d6974746564223a313739353936333838343930363531372c2274797065223a226f726465726564222c22696e70757473223a7b226e223a327d2c226f72646572696e675f6b6579223a226b222c226e756d626572223a322c226f726967696e223a22646f6e652e34326661623762333461336263653364227d', 20);
SELECT pg_catalog.setval('public.converge_revision', 21, true);
SELECT pg_catalog.setval('public.converge_waiter_waiter_seq', 1, false);
ALTER TABLE ONLY public.converge_agent
    ADD CONSTRAINT converge_agent_pkey PRIMARY KEY (lease, id);
ALTER TABLE ONLY public.converge_dead
    ADD CONSTRAINT converge_dead_pkey PRIMARY KEY (lease);
ALTER TABLE ONLY public.converge_dedup
    ADD CONSTRAINT converge_dedup_pkey PRIMARY KEY (pool, key);
ALTER TABLE ONLY public.converge_done
    ADD CONSTRAINT converge_done_pkey PRIMARY KEY (pool, state, until, id);
ALTER TABLE ONLY public.converge_epoch
    ADD CONSTRAINT converge_epoch_pkey PRIMARY KEY (one);
ALTER TABLE ONLY public.converge_expiry
    ADD CONSTRAINT converge_expiry_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.converge_held
    ADD CONSTRAINT converge_held_pkey PRIMARY KEY (lease, rank, id, nonce);
ALTER TABLE ONLY public.converge_joined
    ADD CONSTRAINT converge_joined_pkey PRIMARY KEY (lease, pool, agent);
ALTER TABLE ONLY public.converge_key
    ADD CONSTRAINT converge_key_pkey PRIMARY KEY (pool, key);
ALTER TABLE ONLY public.converge_lane
    ADD CONSTRAINT converge_lane_pkey PRIMARY KEY (pool, lane);
ALTER TABLE ONLY public.converge_later
    ADD CONSTRAINT converge_later_pkey PRIMARY KEY (due, id);
ALTER TABLE ONLY public.converge_lease
    ADD CONSTRAINT converge_lease_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.converge_limit
    ADD CONSTRAINT converge_limit_pkey PRIMARY KEY (deadline, id);
ALTER TABLE ONLY public.converge_member
    ADD CONSTRAINT converge_member_pkey PRIMARY KEY (pool, agent);
ALTER TABLE ONLY public.converge_notice
    ADD CONSTRAINT converge_notice_pkey PRIMARY KEY (lease, id);
ALTER TABLE ONLY public.converge_order
    ADD CONSTRAINT converge_order_pkey PRIMARY KEY (pool, key, number);
ALTER TABLE ONLY public.converge_pool
    ADD CONSTRAINT converge_pool_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.converge_ready
    ADD CONSTRAINT converge_ready_pkey PRIMARY KEY (lane, rank, id);
ALTER TABLE ONLY public.converge_schema
    ADD CONSTRAINT converge_schema_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.converge_state
    ADD CONSTRAINT converge_state_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.converge_task
    ADD CONSTRAINT converge_task_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.converge_waiter
    ADD CONSTRAINT converge_waiter_pkey PRIMARY KEY (channel, waiter);
